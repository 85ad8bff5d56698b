//! Owns the mark of a copy that is not complete: who makes it, and what of it lies outside its own directory, so that
//! whoever comes after a kill goes on with it or removes it, and nothing of anybody else.

use super::super::Context;
use crate::checked;
use crate::durable::{self, Context as _};
use crate::error::{Error, Result};
use crate::fault::boundary;
use std::fs;
use std::path::{Path, PathBuf};

/// Stands in a copy until it is in PGDATA, complete: a directory beside PGDATA that has it was never exchanged, one
/// without it is an old cluster.
pub const MARKER: &str = ".pgmahout-incomplete";

/// In the name of whatever directory we have made, and nobody else has.
const OWN: &str = ".pgmahout-";

/// Who has marked it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// A copy of another instance: without a control file until its end.
    Copy,
    /// A backup that is being restored: it has a control file, as it is started before its end.
    Restore,
    /// An old cluster that is being removed, or a copy that nobody may go on with.
    Removal,
    /// Nobody knows: the mark is damaged.
    Unknown,
}

const WORDS: [(By, &str); 4] =
    [(By::Copy, "copy"), (By::Restore, "restore"), (By::Removal, "removal"), (By::Unknown, "unknown")];

/// What a mark says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark {
    /// Who has made it.
    pub by: By,
    /// The major version of the copy, as `PG_VERSION` has it.
    pub major: String,
    /// Directories of tablespaces, where clusters of other versions may have theirs too, and for WAL.
    pub elsewhere: Vec<PathBuf>,
}

impl Mark {
    /// What stands in this directory; `None` when it is not marked.
    pub fn read(root: &Path) -> Option<Mark> {
        let bytes = fs::read(root.join(MARKER)).ok()?;
        // A path that was cut off would be somebody else's directory.
        let text = checked::from_lines(&bytes).unwrap_or_default();
        let mut lines = text.lines();
        let (by, major) =
            lines.next().and_then(|line| line.split_once(" of PostgreSQL ")).unwrap_or_default();
        let known = WORDS.iter().find(|(_, word)| *word == by);
        Some(Mark {
            by: known.map_or(By::Unknown, |(by, _)| *by),
            major: major.into(),
            elsewhere: lines.map(PathBuf::from).filter(|path| path.is_absolute()).collect(),
        })
    }

    /// Marks a directory.
    pub fn write(&self, root: &Path) -> Result<()> {
        durable::write(&root.join(MARKER), self.text().as_bytes(), 0o600)
    }

    fn text(&self) -> String {
        let (_, word) = WORDS.iter().find(|(by, _)| *by == self.by).expect("all are there");
        let mut text = format!("{word} of PostgreSQL {}\n", self.major);
        for path in &self.elsewhere {
            text += &format!("{}\n", path.display());
        }
        checked::lines(&text)
    }

    /// Removes what the copy has in these of its directories. One that we have named ourselves goes whole; in the others
    /// only what a server of its version has made there is the copy's.
    pub fn remove_elsewhere(&self, which: impl Fn(&Path) -> bool) -> Result<()> {
        for path in self.elsewhere.iter().filter(|path| which(path)) {
            if path.file_name().is_some_and(|name| name.to_string_lossy().contains(OWN)) {
                durable::remove_tree(path)?;
                continue;
            }
            let own = format!("PG_{}_", self.major);
            for entry in fs::read_dir(path).into_iter().flatten().flatten() {
                if entry.file_name().to_string_lossy().starts_with(&own) {
                    durable::remove_tree(&entry.path())?;
                }
            }
        }
        Ok(())
    }
}

/// What lies here is no cluster yet, or no more. (With a control file it is one, whatever a mark that was left over says,
/// but that of a restore, which starts what it has unpacked.)
pub fn is_incomplete(data: &Path) -> bool {
    Mark::read(data).is_some_and(|mark| mark.by == By::Restore || !has_control(data))
}

/// A copy that another run has begun here, and this one may go on with.
pub fn is_begun(root: &Path) -> bool {
    Mark::read(root).is_some_and(|mark| matches!(mark.by, By::Copy | By::Restore)) && !has_control(root)
}

/// Of a damaged mark nobody knows whether it was left over or is that of a restore.
///
/// # Errors
/// [`Error::CopyMark`] beside a control file. Without one it is no cluster anyway, and begun anew.
pub fn check(context: Context, data: &Path) -> Result<()> {
    if Mark::read(data).is_none_or(|mark| mark.by != By::Unknown) {
        return Ok(());
    }
    let path = data.join(MARKER);
    if has_control(data) {
        return Err(Error::CopyMark { path });
    }
    context.progress.warn(format!(
        "{} is damaged: the copy that was not completed is begun anew, and what it has in directories of tablespaces \
         elsewhere is not removed",
        path.display()
    ));
    Ok(())
}

/// A sync has failed: what was written may never reach the disk, though it is read back from memory, and the next sync
/// says nothing of it any more. Nobody goes on with such a copy.
pub fn distrust(root: &Path) {
    if let Some(mark) = Mark::read(root) {
        // Not durable::write: a disk that cannot sync is the reason why we are here.
        let _ = fs::write(root.join(MARKER), Mark { by: By::Removal, ..mark }.text());
    }
}

/// Without a control file no server starts.
pub fn has_control(root: &Path) -> bool {
    root.join("global/pg_control").exists()
}

/// The copy is in PGDATA and complete.
pub fn remove_marker(data: &Path) -> Result<()> {
    let marker = data.join(MARKER);
    match fs::remove_file(&marker) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => {
            other.on("remove", &marker)?;
            durable::sync_directory(data)?;
            boundary("mark.removed");
            Ok(())
        }
    }
}

/// Removes a copy, with what it has elsewhere.
pub fn remove_copy(root: &Path) -> Result<()> {
    if let Some(mark) = Mark::read(root) {
        mark.remove_elsewhere(|_| true)?;
    }
    boundary("copy.removing");
    durable::remove_tree(root)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_copys_own_is_removed() {
        let home = tempfile::tempdir().unwrap();
        let at = |path: &str| home.path().join(path);
        for path in
            ["shared/PG_15_1/5", "shared/PG_16_2/5", "shared/mine", "disk.pgmahout-7/PG_15_1", "copy/global"]
        {
            fs::create_dir_all(at(path)).unwrap();
        }
        let elsewhere = vec![at("shared"), at("disk.pgmahout-7"), at("absent")];
        let mark = Mark { by: By::Restore, major: "15".into(), elsewhere };
        mark.write(&at("copy")).unwrap();
        assert_eq!(Mark::read(&at("copy")), Some(mark));
        remove_copy(&at("copy")).unwrap();
        assert!(!at("copy").exists() && !at("disk.pgmahout-7").exists() && !at("shared/PG_15_1").exists());
        assert!(at("shared/PG_16_2/5").exists() && at("shared/mine").exists());
    }

    #[test]
    fn a_mark_beside_a_control_file_is_left_over_but_that_of_a_restore() {
        let home = tempfile::tempdir().unwrap();
        let root = home.path();
        fs::create_dir(root.join("global")).unwrap();
        assert!(!is_incomplete(root) && !is_begun(root));
        let mut mark = Mark { by: By::Copy, major: "15".into(), elsewhere: Vec::new() };
        mark.write(root).unwrap();
        assert!(is_incomplete(root) && is_begun(root));
        fs::write(root.join("global/pg_control"), "").unwrap();
        assert!(!is_incomplete(root) && !is_begun(root));
        mark.by = By::Restore;
        mark.write(root).unwrap();
        assert!(is_incomplete(root) && !is_begun(root));
        fs::remove_file(root.join("global/pg_control")).unwrap();
        mark.by = By::Removal;
        mark.write(root).unwrap();
        assert!(is_incomplete(root) && !is_begun(root));
    }

    #[test]
    fn a_damaged_mark_names_no_directories_and_nothing_goes_on_with_it() {
        let home = tempfile::tempdir().unwrap();
        let root = home.path();
        let elsewhere = vec![root.join("ts"), root.join("ts.pgmahout-1")];
        Mark { by: By::Restore, major: "15".into(), elsewhere }.write(root).unwrap();
        let whole = fs::read(root.join(MARKER)).unwrap();
        for bytes in checked::damaged(&whole) {
            fs::write(root.join(MARKER), &bytes).unwrap();
            let unknown = Mark { by: By::Unknown, major: String::new(), elsewhere: Vec::new() };
            assert_eq!(Mark::read(root), Some(unknown));
            assert!(is_incomplete(root) && !is_begun(root));
        }
    }
}
