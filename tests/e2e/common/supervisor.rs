//! supervisord as what runs a host's server.

use super::host::{Host, Pg};
use super::site::{Site, until};
use std::os::unix::net::UnixStream;
use std::process::{Child, Stdio};
use std::sync::Arc;

/// supervisord, which runs a host's server.
pub struct Supervisor(Child);

impl Supervisor {
    pub fn start(host: &Host) -> Supervisor {
        let (home, run) = (host.home.display(), host.socket_directory());
        let config = format!(
            "[unix_http_server]\nfile={run}/supervisor.sock\n\n[supervisord]\nlogfile={home}/supervisord.log\n\
             pidfile={home}/supervisord.pid\n\n[rpcinterface:supervisor]\n\
             supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface\n\n\
             [supervisorctl]\nserverurl=unix://{run}/supervisor.sock\n\n[program:postgres]\n\
             command={bin}/postgres -D \"{data}\" -p {port} -c \"unix_socket_directories={run}\"\n\
             stopsignal=INT\nstopwaitsecs=60\nautorestart=true\nredirect_stderr=true\nstdout_logfile={log}\n",
            run = run.display(),
            bin = host.pg.bin.display(),
            data = host.data.display(),
            port = host.port,
            log = host.log_file().display(),
        );
        host.account.write(&host.home.join("supervisord.conf"), config, 0o644);
        let child = host
            .command("supervisord")
            .args(["-n", "-c"])
            .arg(host.home.join("supervisord.conf"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("supervisord");
        let socket = run.join("supervisor.sock");
        until("supervisord answers, and its server runs", 30, || {
            UnixStream::connect(&socket).is_ok() && host.try_sql("postgres").is_ok()
        });
        Supervisor(child)
    }
}

impl Supervisor {
    /// At once; its program goes on.
    pub fn kill(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        // Its program ends with the host.
        self.kill();
    }
}

/// Nothing is said: ~/supervisord.conf and its program `postgres` are found.
pub fn supervised(site: &Arc<Site>, name: &str) -> Host {
    let said_nothing = site.host(name).pg(Pg::embedded("18")).yml("service", "").yml("start_command", "");
    said_nothing.yml("stop_command", "").stopped().build()
}
