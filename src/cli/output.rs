//! Owns how results reach stdout: as one JSON value for a program, as text for a person.

use crate::error::{moves_a_terminal, printable};
use serde::Serialize;
use std::io::Write;

/// A result, on stdout. A reader that has gone away is no failure of ours. Names and texts in it are other people's:
/// what would move a terminal is escaped.
pub fn say(text: &str) {
    let _ = writeln!(std::io::stdout(), "{}", printable(text));
}

/// A report, for a program or for a person.
pub fn show<T: Serialize>(json: bool, report: &T, text: impl Fn(&T) -> String) {
    if json { answer(report) } else { say(text(report).trim_end()) }
}

/// One JSON value, on stdout.
pub fn answer(value: &impl Serialize) {
    say(&json_text(value));
}

/// A value as JSON on one line. JSON lets DEL and C1 controls and others stand as they are; a terminal obeys them.
pub fn json_text(value: &impl Serialize) -> String {
    let text = serde_json::to_string(value).expect("reports are plain data");
    text.chars().fold(String::with_capacity(text.len()), |mut out, c| {
        match c {
            c if moves_a_terminal(c) => out.push_str(&format!("\\u{:04x}", c as u32)),
            c => out.push(c),
        }
        out
    })
}

/// A name as part of a line: whatever is in it, it begins no other line and no other column.
pub fn in_one_line(text: &str) -> String {
    let escaped = |c: char| if moves_a_terminal(c) { c.escape_default().collect() } else { c.to_string() };
    text.chars().map(escaped).collect()
}

/// Rows under their headings, each column as wide as its widest cell.
pub fn table<const N: usize>(headings: &[&str; N], rows: impl Iterator<Item = [String; N]>) -> String {
    let rows = rows.map(|row| row.map(|cell| in_one_line(&cell)));
    let all: Vec<[String; N]> = std::iter::once(headings.map(str::to_owned)).chain(rows).collect();
    let width = |column: usize| all.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; N] = std::array::from_fn(width);
    let line = |row: &[String; N]| {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}"));
        format!("{}\n", cells.collect::<Vec<_>>().join("  ").trim_end())
    };
    all.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOSTILE: &str = "shop\u{1b}]0;owned\u{7}\r\u{9b}2J\u{202e}\u{7f}";

    fn is_harmless(text: &str) -> bool {
        !text.chars().any(|c| moves_a_terminal(c) && c != '\n')
    }

    #[test]
    fn a_name_in_a_table_is_one_cell_and_moves_no_terminal() {
        let rows = [[format!("a{HOSTILE}\nrole  true\tx"), "b".to_owned()]];
        let text = table(&["NAME", "ROLE"], rows.into_iter());
        assert!(is_harmless(&text), "{text:?}");
        assert_eq!(text.lines().count(), 2, "{text}");
    }

    #[test]
    fn json_stays_what_it_was_and_moves_no_terminal() {
        let text = json_text(&HOSTILE);
        assert!(is_harmless(&text), "{text:?}");
        assert_eq!(serde_json::from_str::<String>(&text).unwrap(), HOSTILE);
    }

    #[test]
    fn what_a_peer_says_in_an_error_moves_no_terminal() {
        let error = crate::error::Error::SourceFailed { host: "h".into(), why: HOSTILE.into() };
        assert!(is_harmless(&error.to_string()));
        assert!(is_harmless(&printable(&printable(HOSTILE))));
    }
}
