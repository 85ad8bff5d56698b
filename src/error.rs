//! Owns every error text, its hint and its exit code: one variant per thing that can go wrong,
//! one arm in [`Error::parts`] that says all three.
//!
//! Texts are lower case, without a full stop, and name the object. The hint says the way out.

use std::fmt;

/// What every fallible function of the crate returns.
pub type Result<T> = std::result::Result<T, Error>;

/// Exit codes, the same for every command (DESIGN.md, "What bad input gets").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// 1: it failed; nothing is half-done.
    Failed = 1,
    /// 2: wrong usage or a blurb that does not say enough.
    Usage = 2,
    /// 3: refused for safety; a flag (normally `--confirm`) overrides it.
    Refused = 3,
    /// 4: the other side could not be reached.
    Unreachable = 4,
    /// 5: interrupted; run the same command again to complete it.
    Interrupted = 5,
}

/// Everything that can go wrong.
#[derive(Debug)]
pub enum Error {
    /// A file or directory operation failed. `action` is an infinitive: "read", "create".
    File { action: &'static str, path: std::path::PathBuf, source: std::io::Error },
}

struct Parts {
    exit: Exit,
    text: String,
    hint: Option<String>,
}

impl Error {
    /// The exit code, the text and the hint of this error, in the only place they are written.
    fn parts(&self) -> Parts {
        use Exit::*;
        let (exit, text, hint): (Exit, String, &str) = match self {
            Error::File { action, path, source } => {
                (Failed, format!("could not {action} {}: {source}", path.display()), "")
            }
        };
        Parts { exit, text, hint: (!hint.is_empty()).then(|| hint.to_owned()) }
    }

    /// The exit code of the process that ends with this error.
    pub fn exit(&self) -> Exit {
        self.parts().exit
    }

    /// What gets the person out, when there is something better than reading the text again.
    pub fn hint(&self) -> Option<String> {
        self.parts().hint
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.parts().text)
    }
}

impl std::error::Error for Error {}
