//! Who runs the servers: PostgreSQL refuses root, so root's tests run everything as an account.

use super::line::Network;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::OnceLock;

#[derive(Debug)]
pub struct Account {
    pub name: String,
    pub uid: u32,
    pub gid: u32,
    /// It is in more groups than its own (postgres: ssl-cert, for the key of Debian's servers).
    pub in_groups: bool,
}

/// The account of ordinary hosts: `dotcloud` when the tests run as root, else oneself.
pub fn account() -> &'static Account {
    static ACCOUNT: OnceLock<Account> = OnceLock::new();
    ACCOUNT.get_or_init(|| {
        if nix::unistd::geteuid().is_root() {
            Account::named("dotcloud")
        } else {
            let user = nix::unistd::User::from_uid(nix::unistd::geteuid()).unwrap().expect("our own account");
            Account { name: user.name, uid: user.uid.as_raw(), gid: user.gid.as_raw(), in_groups: false }
        }
    })
}

impl Account {
    pub fn named(name: &str) -> Account {
        // The tests are static programs too.
        static NAMES: std::sync::Once = std::sync::Once::new();
        NAMES.call_once(pgmahout::nss::files_and_dns_only);
        let user = nix::unistd::User::from_name(name)
            .unwrap()
            .unwrap_or_else(|| panic!("no account {name:?} on this machine: run scripts/bootstrap --tests"));
        let c_name = std::ffi::CString::new(name).unwrap();
        let in_groups = nix::unistd::getgrouplist(&c_name, user.gid).unwrap().len() > 1;
        Account { name: user.name, uid: user.uid.as_raw(), gid: user.gid.as_raw(), in_groups }
    }

    /// A command under this account with nothing of the tests' own environment.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        self.command_in(None, program)
    }

    /// The same in a network of its own.
    pub fn command_in(&self, network: Option<&Network>, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let change = nix::unistd::geteuid().is_root() && self.uid != 0;
        // The standard library can set no groups, only drop root's; and who is not root any more enters no network.
        let mut command = if network.is_some() || change && self.in_groups {
            let entering = network.map(|network| ["nsenter".to_owned(), network.option()]);
            let (uid, gid) = (self.uid.to_string(), self.gid.to_string());
            let becoming = ["setpriv", "--reuid", &uid, "--regid", &gid, "--init-groups", "--"];
            let words: Vec<_> = entering.iter().flatten().map(String::as_str).chain(becoming).collect();
            let mut command = Command::new(words[0]);
            command.args(&words[1..]).arg(program);
            command
        } else {
            let mut command = Command::new(program);
            if change {
                command.uid(self.uid).gid(self.gid);
            }
            command
        };
        command
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/bin:/bin")
            .env("LANG", "C.UTF-8")
            .env("USER", &self.name)
            .env("LOGNAME", &self.name)
            .env("SHELL", "/bin/bash")
            .current_dir("/");
        command
    }

    pub fn own(&self, path: &std::path::Path) {
        std::os::unix::fs::lchown(path, Some(self.uid), Some(self.gid))
            .unwrap_or_else(|e| panic!("chown {}: {e}", path.display()));
    }

    pub fn write(&self, path: &std::path::Path, content: impl AsRef<[u8]>, mode: u32) {
        use std::os::unix::fs::PermissionsExt;
        std::fs::write(path, content).unwrap_or_else(|e| panic!("write {}: {e}", path.display()));
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        self.own(path);
    }

    pub fn mkdir(&self, path: &std::path::Path, mode: u32) {
        use std::os::unix::fs::PermissionsExt;
        std::fs::create_dir(path).unwrap_or_else(|e| panic!("mkdir {}: {e}", path.display()));
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        self.own(path);
    }
}

/// Runs to the end; panics with its stderr when it fails.
pub fn must(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
}
