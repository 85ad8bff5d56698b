//! Servers that were killed, and processes that outlive them; supervisord that is killed.

use crate::common::*;
use crate::scene::*;
use nix::sys::signal::{Signal, kill as signal};
use nix::unistd::Pid;

/// The kernel's out-of-memory killer takes a postmaster; a backend that waits for its disk does not see it.
#[test]
fn a_backend_that_outlives_its_postmaster() {
    let site = Site::new();
    let primary = site.host("db.0").pg(Pg::embedded("18")).build();
    let standby = site.host("db.1").pg(Pg::embedded("18")).yml("stop_timeout", "2").build();
    primary.exec("CREATE EXTENSION IF NOT EXISTS amcheck");
    standby.exec("CREATE TABLE old_cluster AS SELECT 42 AS n");
    // Its drop would wait for a backend that is stopped.
    let mut client = std::mem::ManuallyDrop::new(standby.sql());
    let backend: i32 = client.query_one("SELECT pg_backend_pid()", &[]).unwrap().get(0);
    let backend = Pid::from_raw(backend);
    signal(backend, Signal::SIGSTOP).unwrap();
    kill(standby.postmaster().expect("a running server").as_raw());
    until("all others have ended", 60, || {
        standby.processes() == [backend.as_raw()] && !standby.names_a_process()
    });
    let before = snapshot(&standby);

    let left = format!(
        "processes of a server whose postmaster is gone still work in {} after 2 s: {backend}",
        standby.data.display()
    );
    let hint = "they may still write there: end them by kill, then run the same command again";
    let command = Command::enslave(&standby, &primary, &["--confirm", "db.1"]);
    command.run().run().fails(1, &left, hint);
    assert!(before == snapshot(&standby), "something was changed under a backend");
    primary_is_clean(&primary, &[]);

    signal(backend, Signal::SIGCONT).unwrap();
    let journal = Journal::start(&primary);
    command.again();
    follows(&primary, &standby, journal);
}

/// What supervisord had started goes on without it, and its successor cannot start what runs already.
#[test]
fn a_supervisord_that_is_killed() {
    let site = Site::new();
    let primary = site.host("db.0").pg(Pg::embedded("18")).build();
    noise(&primary, 2);
    primary.exec("CREATE EXTENSION IF NOT EXISTS amcheck");
    let standby = supervised(&site, "db.1");
    standby.start();
    standby.exec("CREATE TABLE old_cluster AS SELECT 42 AS n");
    let old = standby.system_identifier();
    standby.stop();
    let saved = Saved::of(&standby);
    let command = Command::enslave(&standby, &primary, &["--confirm", "db.1"]);
    for boundary in ["enslave.planned", "server.stopped", "copy.part", "server.starting", "server.started"] {
        eprintln!("supervisord is killed at {boundary}");
        saved.put_back(&standby);
        as_if_never_followed(&primary);
        let mut supervisor = Supervisor::start(&standby);
        let journal = Journal::start(&primary);
        let running = command.begin(2);
        command.wait_for(boundary);
        supervisor.kill();
        let output = running.wait();
        if output.code != 0 {
            assert_eq!(output.code, 1, "{output:?}");
            assert!(output.stderr.contains("supervisor"), "{output:?}");
        }
        no_slot_but(&primary, &[SLOT]);
        look_at(&standby, |host| match host.system_identifier() == old {
            true => assert_eq!(host.one("SELECT n FROM old_cluster"), "42"),
            false => assert!(host.is_standby(), "a copy was started as a primary"),
        });

        let mut supervisor = Supervisor::start(&standby);
        command.again();
        follows(&primary, &standby, journal);
        primary_is_clean(&primary, &[SLOT]);
        // Before its server, which it would start again.
        supervisor.kill();
        standby.stop_at_once();
    }
}
