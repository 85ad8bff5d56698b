//! Owns how results reach stdout: as one JSON value for a program, as text for a person.

use serde::Serialize;
use std::io::Write;

/// A result, on stdout. A reader that has gone away is no failure of ours.
pub fn say(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

/// A report, for a program or for a person.
pub fn show<T: Serialize>(json: bool, report: &T, text: impl Fn(&T) -> String) {
    if json { answer(report) } else { say(text(report).trim_end()) }
}

/// One JSON value, on stdout.
pub fn answer(value: &impl Serialize) {
    say(&json_text(value));
}

/// A value as JSON on one line. JSON lets DEL and C1 controls stand as they are; a terminal obeys them.
pub fn json_text(value: &impl Serialize) -> String {
    let text = serde_json::to_string(value).expect("reports are plain data");
    text.chars().fold(String::with_capacity(text.len()), |mut out, c| {
        match c {
            '\u{7f}'..='\u{9f}' => out.push_str(&format!("\\u{:04x}", c as u32)),
            c => out.push(c),
        }
        out
    })
}

/// Rows under their headings, each column as wide as its widest cell.
pub fn table<const N: usize>(headings: &[&str; N], rows: impl Iterator<Item = [String; N]>) -> String {
    let all: Vec<[String; N]> = std::iter::once(headings.map(str::to_owned)).chain(rows).collect();
    let width = |column: usize| all.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; N] = std::array::from_fn(width);
    let line = |row: &[String; N]| {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}"));
        format!("{}\n", cells.collect::<Vec<_>>().join("  ").trim_end())
    };
    all.iter().map(line).collect()
}
