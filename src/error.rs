//! Owns every error text, its hint and its exit code: one variant per thing that can go wrong,
//! one arm in [`Error::parts`] that says all three.
//!
//! Texts are lower case, without a full stop, and name the object. The hint says the way out.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

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

/// What is wrong with a server's certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CertificateFlaw {
    /// No authority that is trusted has signed it, but this one.
    Authority {
        /// `CN=ca, O=Example`
        issuer: String,
    },
    /// It is another host's.
    Name {
        /// As it was connected to.
        host: String,
        /// Whose it is.
        names: Vec<String>,
    },
    /// It is too old.
    Expired {
        /// As OpenSSL shows a time.
        until: String,
    },
    /// It is too new, or a clock is wrong.
    NotYet {
        /// As OpenSSL shows a time.
        from: String,
    },
    /// In OpenSSL's words.
    Other {
        /// `certificate revoked`
        why: String,
    },
}

/// Everything that can go wrong.
#[derive(Debug)]
#[allow(missing_docs, reason = "a variant's fields are explained by its own docstring")]
pub enum Error {
    /// A file or directory operation failed. `action` is an infinitive: "read", "create".
    File { action: &'static str, path: std::path::PathBuf, source: std::io::Error },
    // ---- PostgreSQL's facts (src/postgres)
    /// A text that should be a PostgreSQL version.
    PgVersion { text: String },
    /// A text that should be an LSN.
    Lsn { text: String },
    /// A text that should be a system identifier.
    SystemId { text: String },
    /// A line of a timeline history file; 0 stands for the whole file.
    HistoryLine { file: String, number: usize, line: String, why: &'static str },
    /// A timeline history file of 9.0 to 9.2.
    HistoryFormat { file: String },
    /// A WAL segment size that no server has.
    WalSegmentSize { bytes: u32 },
    /// A WAL page could not be read.
    WalPage { lsn: String, source: std::io::Error },
    /// WAL of a version before 10.
    WalVersion { magic: u16 },
    /// Not even the first WAL record could be read.
    WalUnreadable { lsn: String, why: String },
    /// `pg_control` ends before its last field.
    ControlTooShort { bytes: usize },
    /// `pg_control` of a big-endian machine.
    ControlByteOrder,
    /// `pg_control` of a version that is not known here.
    ControlVersion { version: u32 },
    /// `pg_control` does not agree with its own checksum.
    ControlChecksum { stored: u32, computed: u32 },
    /// `pg_control` holds something that no server writes.
    ControlField { field: &'static str, value: String },
    /// A `backup_label` without one of its lines.
    BackupLabel { line: &'static str },
    /// A libpq connection string. It is not quoted, for it may hold a password.
    Conninfo { why: &'static str },
    // ---- blurbs. What they quote is escaped and free of passwords already.
    /// Nothing arrived.
    BlurbEmpty,
    /// More arrived than any blurb has.
    BlurbTooLong { bytes: usize, limit: usize },
    /// Not UTF-8.
    BlurbNotText { position: usize },
    /// The command that should have printed the blurb printed an error.
    BlurbIsError { line: String },
    /// Text, but no blurb.
    BlurbUnknown { line: String },
    /// Damaged JSON or YAML.
    BlurbSyntax { format: &'static str, why: String },
    /// Several instances and no `--from`.
    BlurbSeveral { names: Vec<String> },
    /// The instance asked for is not there.
    BlurbNoSuchInstance { wanted: String, names: Vec<String> },
    /// No port for SSH or PostgreSQL.
    BlurbNoPort { of: Option<String>, what: &'static str, names: Vec<String> },
    /// Several ports could be PostgreSQL's.
    BlurbPorts { names: Vec<String> },
    /// A port's URL cannot be used.
    BlurbUrl { port: String, url: String, why: String },
    /// The environment of this instance does not tell about another.
    EnvironmentInstance { wanted: String, why: &'static str },
    // ---- this machine
    /// A line or value of the settings file.
    SettingsFile { path: PathBuf, why: String },
    /// A setting whose value makes no sense.
    SettingValue { name: &'static str, value: String, wanted: &'static str },
    /// A setting that another one makes necessary.
    SettingMissing { name: &'static str, because: String },
    /// No data directory was given or found; or several were found.
    NoDataDirectory { candidates: String },
    /// PGDATA holds something else.
    NotADataDirectory { path: PathBuf },
    /// There is no cluster in PGDATA.
    NoCluster { path: PathBuf },
    /// A cluster without its control file that is no unfinished copy.
    NoControlFile { path: PathBuf },
    /// No directory with PostgreSQL's programs was given or found.
    NoBinDirectory,
    /// A program of PostgreSQL is missing.
    NoProgram { program: String, directory: PathBuf },
    /// The account cannot keep this data directory.
    WrongAccount { path: PathBuf, owner: String },
    /// A child could not be started.
    Spawn { program: String, source: std::io::Error },
    /// A child failed; what it said is the error.
    Child { program: String, status: String, said: String },
    /// A child took too long and was killed.
    ChildTooSlow { program: String, limit: Duration },
    /// Another pgmahout works on this instance.
    Locked { path: PathBuf, holder: String },
    /// This server was stopped for its successor, and stays down.
    Fenced { instance: String, why: String },
    /// An interrupt came.
    Interrupted,
    /// An operation runs in the background of this instance.
    JobRuns { verb: String, source_name: String, pid: i32 },
    /// An operation in the background was ended from outside.
    JobGone { verb: String, source_name: String },
    /// An operation in the background goes on.
    JobTooSlow { limit: Duration },
    /// Starting or stopping the server failed.
    ServerCommand { action: &'static str, manager: String, why: String, log: Option<String> },
    /// The server goes on running.
    ServerDoesNotStop { data: PathBuf, limit: Duration },
    /// The postmaster is gone, and processes that it had started are not.
    ServerProcessesLeft { data: PathBuf, pids: Vec<i32>, limit: Duration },
    /// The server does not run, and has to.
    ServerDown { instance: String },
    /// The server went away while it was starting.
    ServerGone { data: PathBuf, log: Option<String> },
    /// The server runs but does not accept connections.
    ServerNotReady { limit: Duration, why: String, log: Option<String> },
    // ---- the other side
    /// SQL: no connection.
    SqlUnreachable { at: String, why: String },
    /// SQL: a connection, and then silence.
    SqlSilent { at: String, limit: Duration },
    /// SQL: wrong password, or none.
    SqlPassword { at: String, user: String },
    /// SQL: refused for another reason.
    SqlRefused { at: String, why: String },
    /// SQL: TLS is asked for, and the server has none.
    SqlNoTls { at: String },
    /// SQL: the server's certificate is not what `sslmode` asks for; `root` is what it was checked by.
    SqlCertificate { at: String, sslmode: &'static str, root: String, flaw: CertificateFlaw },
    /// What is asked of TLS contradicts itself.
    TlsAsked { why: String },
    /// A file that TLS needs.
    TlsFile { what: &'static str, path: PathBuf, why: String },
    /// Such a file lies where a copy would replace it.
    TlsFileInData { path: PathBuf },
    /// This machine's own certificates are not found.
    TlsNoSystem,
    /// SQL: no entry of pg_hba.conf lets a replication connection in.
    NoReplicationEntry { at: String, user: String },
    /// SQL: a statement failed.
    Sql { label: String, why: String },
    /// The role cannot do what is needed.
    NotSuperuser { user: String, at: String },
    /// SSH: no connection.
    SshUnreachable { host: String, why: String },
    /// SSH: no key was accepted.
    SshAuthentication { host: String, user: String, tried: String },
    /// SSH: another host key than the one remembered.
    HostKeyChanged { host: String, offered: String, file: PathBuf },
    /// SSH: another host key than the one that was demanded.
    HostKeyNotPinned { host: String, offered: String, pinned: String },
    /// SSH: a key that known_hosts revokes.
    HostKeyRevoked { host: String, offered: String, file: PathBuf },
    /// SSH: the connection broke, or the other side did not keep to the protocol.
    SshBroken { host: String, why: String },
    /// A command on the other side failed.
    RemoteCommand { host: String, status: i32, said: String },
    /// The agent did not start there.
    NoSource { host: String, said: String },
    /// The agent could not be uploaded.
    AgentUpload { host: String, why: String },
    /// The agent does not run on that machine.
    OtherMachine { host: String, theirs: String, ours: String },
    /// The agent there refused or failed, and said how.
    Relayed { host: String, message: String, hint: Option<String>, exit: u8 },
    /// The agent there reported an error.
    SourceFailed { host: String, why: String },
    // ---- preflight
    /// SSH and SQL lead to different servers.
    TwoMachines { ssh: String, ssh_system: String, sql: String, sql_system: String },
    /// Source and target are one.
    SourceIsTarget { instance: String },
    /// The source is a standby of the target.
    SourceIsOurStandby { source: String, instance: String },
    /// The source is a standby.
    SourceIsStandby { source: String },
    /// Different major versions.
    OtherMajor { source: String, theirs: String, ours: String },
    /// Different block sizes.
    OtherBlockSize { theirs: u32, ours: u32 },
    /// `wal_level` is too low.
    WalLevel { at: String, level: String, wanted: &'static str },
    /// A standby still streams through the slot that is to be dropped.
    SlotOfStandby { slot: String, standby: String },
    /// The source is older than replication.
    NoStreaming { at: String, version: String },
    /// All WAL senders are taken.
    NoFreeSender { at: String, limit: i64 },
    /// All replication slots are taken.
    NoFreeSlot { at: String, limit: i64 },
    /// Somebody else streams from our slot.
    SlotInUse { slot: String },
    /// A setting of the standby is lower than the primary's.
    SettingTooLow { name: &'static str, ours: i64, theirs: i64, source: String },
    /// Not enough room.
    NoSpace { path: PathBuf, needed: u64, available: u64 },
    /// PGDATA is a mount point and cannot be moved aside.
    MountPoint { path: PathBuf },
    /// A tablespace's directory is not empty here.
    TablespaceTaken { on_source: String, here: PathBuf },
    /// A tablespace would lie in the data directory.
    TablespaceInside { on_source: String, here: PathBuf },
    /// A tablespace that was not there before.
    UnknownRoot { root: u32 },
    /// The history file of the source's timeline is missing.
    NoHistory { timeline: u32 },
    /// `--plan repoint`, but it is not correct.
    CannotRepoint { why: String },
    /// `--plan delta` is not possible.
    CannotDelta { why: String },
    /// Data would be lost.
    NeedsConfirmation { instance: String, holds: String },
    /// The same, of what would be overwritten where it lies.
    WouldOverwrite { instance: String, holds: String },
    /// An exclusive backup of somebody else.
    ForeignBackup { text: String },
    /// The standby does not stream.
    NotStreaming { limit: Duration, log: Option<String> },
    // ---- promote, wait
    /// There would be two primaries.
    TwoPrimaries { instance: String, old: String },
    /// This old primary's place was taken.
    Superseded { instance: String, why: String },
    /// The source's place was taken by the peer `name`.
    SourceSuperseded { source: String, by: String, name: String, timeline: u32 },
    /// A follower was to be noted outside an SSH session.
    NoSshPeer,
    /// What is noted of a peer cannot be read.
    PeerFile { path: PathBuf, why: String },
    /// The record of a job in the background cannot be read.
    JobRecord { path: PathBuf, why: String },
    /// The mark of a copy is damaged, beside a control file.
    CopyMark { path: PathBuf },
    /// What was to be fenced is no primary.
    NotAPrimary { instance: String },
    /// What was to be fenced is another cluster.
    FencedAnother { instance: String, theirs: String, expected: String },
    /// What was to be fenced, or started again, was stopped for somebody else.
    FencedForAnother { instance: String, successor: String, fence: PathBuf },
    /// What was to be fenced is on another timeline than this standby.
    FencedOtherTimeline { instance: String, theirs: u32, ours: u32 },
    /// Replay is paused because a setting is too low.
    PausedBySetting { name: &'static str, ours: u32, wanted: u32 },
    /// Another directory stands where the source's was.
    SourceMoved { host: String },
    /// The last WAL of the fenced primary did not arrive.
    LastWalMissing { end: String, limit: Duration },
    /// 9.0 without a trigger file.
    NoTriggerFile,
    /// Recovery does not end.
    PromotionTooSlow { limit: Duration },
    /// The standby is still behind.
    NotCaughtUp { limit: Duration, behind: u64, log: Option<String> },
    /// The pipe that the blurb should come through stays open.
    BlurbDoesNotCome { limit: Duration },
    /// A terminal where the blurb should come from.
    BlurbFromTerminal,
    /// No blurb and no environment to look one up in.
    NoEnvironment { home: PathBuf },
    // ---- credentials
    /// Nobody here knows a role's password.
    NoPassword { instance: String, role: String, own: bool },
    /// There is no such role.
    NoRole { role: String, instance: String },
    /// What only a primary can do.
    OnStandby { instance: String, what: &'static str, primary: Option<String> },
    /// The password that was to come on stdin did not, or is none.
    PasswordInput { why: String },
    /// A password that is not the role's.
    NotThePassword { role: String, at: String },
    /// The server does not let the role in with its new password; the old one is back.
    NewPasswordRefused { role: String, why: String },
    // ---- plans
    /// A plan's name.
    PlanName { name: String },
    /// A line of a plan's settings.
    PlanLine { number: usize, line: String },
    /// A plan's settings did not come.
    PlanInput { why: String },
    /// A setting that a plan cannot have.
    PlanSetting { plan: String, name: String, why: String },
    /// The machine is too small for a plan.
    PlanMemory { plan: String, wanted: u64, available: u64, total: u64 },
    /// The server does not start with a plan; `back` says why not even without it.
    PlanDoesNotStart { plan: String, why: String, back: Option<String> },
    /// The server goes on with its old settings.
    NotReloaded { limit: Duration },
    /// What stands in a file of ours is not ours.
    PlanFile { path: PathBuf, why: String },
    // ---- builds of PostgreSQL
    /// A text that should be a release.
    ReleaseText { text: String },
    /// Nobody said which version.
    NoVersionNamed { looked_at: String },
    /// A mirror's URL. Its password is gone already.
    MirrorUrl { url: String, why: &'static str },
    /// No mirror could be asked.
    MirrorsDown { wanted: String, why: Vec<String> },
    /// The mirrors do not have it.
    UnknownRelease { wanted: String, mirrors: Vec<String>, offered: String },
    /// A tarball without its checksum.
    NoChecksum { url: String },
    /// A checksum file without a checksum.
    ChecksumText { url: String },
    /// A given checksum that is none.
    ChecksumArgument { text: String },
    /// What arrived is not what was published.
    WrongChecksum { url: String, expected: String, found: String },
    /// The download did not come to its end.
    DownloadBroke { url: String, why: String, kept: u64 },
    /// An archive wants to write elsewhere.
    ArchiveEscapes { archive: String, entry: PathBuf, why: &'static str },
    /// An archive cannot be read.
    ArchiveDamaged { archive: String, why: String },
    /// An option of configure that cannot be taken.
    BuildOption { option: String, why: &'static str },
    /// Programs that building needs, each with its Debian package.
    MissingTools { version: String, missing: Vec<(String, &'static str)> },
    /// Libraries that were asked for, each with its Debian package.
    MissingLibraries { missing: Vec<(&'static str, &'static str)> },
    /// A tool failed.
    BuildFailed { release: String, phase: &'static str, status: String, log: PathBuf, tail: String },
    /// A program of a build does not run, or is another.
    BuildDoesNotRun { program: String, release: String, why: String, package: Option<String> },
    /// The home of the instance belongs to somebody else.
    NotOurHome { home: PathBuf, owner: String },
    /// The data directory is of another major version.
    OtherDataMajor { data: PathBuf, has: String, wanted: String },
    /// `~/postgresql` is not a link.
    LinkTaken { path: PathBuf },
    /// The server does not come from `~/postgresql`.
    NotFromLink { programs: String, because: String },
    /// The server did not start with the new build, and runs with the old one again.
    SwitchedBack { release: String, previous: String, why: String },
    /// The server starts neither with the new build nor with the one before.
    NothingStarts { release: String, previous: String, why: String, second: String },
    /// The server was started, but from another place.
    OtherProgramsRun { release: String, running: PathBuf },
    /// No such build.
    NoSuchBuild { release: String, known: Vec<String> },
    /// It is in use.
    BuildInUse { release: String, by: &'static str },
    /// The other instance has no build to give.
    NothingToGive { instance: String, has: String },
    /// A build of another kind of machine.
    OtherLibc { host: String, theirs: String, ours: String },
    // ---- logs
    /// There is no log to read.
    NoLog { looked_at: String },
    /// The log goes where it cannot be read from.
    LogElsewhere { destination: String },
    /// The log is there and cannot be read.
    LogUnreadable { path: PathBuf, source: std::io::Error },
    /// A text that should be a time, or a while.
    SinceText { text: String },
    // ---- sessions
    /// No server, no sessions.
    NoServer { instance: String },
    /// No process of the server has this number.
    NoSuchSession { pid: i32 },
    /// It is not a client that is served there.
    NotAClient { pid: i32, kind: String, name: Option<String> },
    /// The session runs no statement.
    NothingToCancel { pid: i32, state: String },
    /// They were told to stop, and did not.
    DoesNotStop { pids: Vec<i32>, told: usize, ended: bool, limit: Duration },
    /// Statements are not counted: pg_stat_statements is not preloaded.
    StatementsNotCounted { instance: String, preloaded: Vec<String>, installed: bool },
    /// They are, but no database of this standby shows it.
    StatementsNotShown { instance: String },
    /// There is no psql.
    NoPsql { directory: Option<PathBuf> },
    /// A library that the source preloads is not among the programs here.
    LibraryMissing { library: String, source: String, directory: PathBuf },
    // ---- backups: the store and what lies in it
    /// A text that should be a backup's name.
    BackupIdText { text: String },
    /// No such backup.
    NoBackup { id: String, place: String },
    /// A manifest that cannot be read.
    Manifest { id: String, why: String },
    /// What is stored is not what was stored.
    BackupDamaged { id: String, place: String, why: String },
    /// No such object.
    NoObject { place: String, name: String },
    /// The store failed. `action` is an infinitive: "read", "write".
    Store { place: String, action: &'static str, why: String },
    /// Nowhere is a key for S3.
    StoreCredentials { place: String, looked: String },
    /// S3 refuses the key, or what it wants to do.
    StoreDenied { place: String, why: String },
    /// No such bucket.
    StoreBucket { bucket: String, endpoint: String },
    /// The bucket is in another region.
    StoreRegion { bucket: String, region: String },
    /// The service does not answer.
    StoreUnreachable { place: String, endpoint: String, why: String },
    /// A store's directory that is not one, or not ours.
    StoreDirectory { path: PathBuf, why: String },
    /// A key file that cannot be used. `why` names the file.
    BackupKeyFile { why: String },
    /// An encrypted backup, and nothing to open it with.
    NoBackupKey { id: String, wanted: &'static str },
    /// An encrypted backup, and the wrong key or passphrase.
    WrongBackupKey { id: String, wanted: &'static str },
    /// A file that would be overwritten.
    FileExists { path: PathBuf },
    // ---- backups: taking one
    /// A text that should be METHOD[:LEVEL].
    CompressionText { text: String },
    /// The database to be backed up is not there.
    NoDatabase { database: String, there: Vec<String> },
    /// None was named, and there are several.
    WhichDatabase { there: Vec<String> },
    /// `pg_dump` has failed; `said` is its stderr.
    Dump { database: String, status: String, said: String },
    /// What `pg_dump` wrote is no whole archive, although it said that it was done.
    Archive { why: String },
    /// A method that the tools of this server cannot read.
    NoZstd { tool: PathBuf },
    /// WAL that a physical backup needs is not there any more.
    BackupWalGone { segment: String, directory: PathBuf },
    /// A copy that was not completed.
    UnfinishedCopy { path: PathBuf },
    /// The postmaster is gone, others of the server are not.
    ClusterBusy { path: PathBuf, pid: i32 },
    /// A server that was down was started while it was copied.
    StartedMeanwhile { instance: String },
    /// A disk so full that a backup of the running server cannot begin.
    NoRoomForBackup { why: String },
    /// A base backup of a standby before 9.6.
    StandbyBackup { version: String },
    // ---- backups: restoring and verifying
    /// A physical backup's tar that is not one.
    TarDamaged { why: String },
    /// A physical backup's tar that tries to leave its directory.
    TarEscapes { entry: String, why: &'static str },
    /// A physical backup of another major version.
    BackupOtherVersion { theirs: String, ours: String },
    /// The server of a restored cluster did not get through its recovery.
    RestoredDoesNotStart { why: String, log: String },
    /// No program of PostgreSQL that is new enough for a backup.
    BackupTool { program: &'static str, wanted: String, found: Option<String> },
    /// A database would be replaced.
    ReplacesDatabase { instance: String, database: String, holds: String },
    /// Nobody said into which database.
    RestoreWhere { source_name: String },
    /// A template is no place for a backup.
    RestoreTemplate { database: String },
    /// Roles that a backup needs are missing.
    RestoreRoles { roles: Vec<String>, instance: String },
    /// Extensions that a backup needs cannot be had on this server.
    RestoreExtensions { extensions: Vec<String>, instance: String },
    /// The old database has what ties it down.
    DatabaseTied { database: String, by: Vec<String> },
    // ---- copy: the data
    /// A table, or whatever else, could not be read from one side or written to the other.
    CopyFailed { what: String, side: String, why: String, is_full: bool },
    /// This source cannot be copied from as it is.
    CopySource { source_name: String, why: String },
    /// The copy does not hold what the source does.
    CopyDiffers { what: Vec<String> },
    // ---- copy: the data, end
    /// pg_restore failed.
    RestoreFailed { program: String, status: String, said: String },
    /// What was restored is not what the manifest says.
    RestoredDiffers { what: Vec<String> },
    /// amcheck found something.
    StructureDamaged { database: String, said: String },
    /// A verification found that a backup is bad.
    NotVerified { id: String, why: String },
    /// The new database could not take the old one's place.
    NotSwapped { database: String, why: String },
    /// Not a backup.
    NotABackup { source: String, why: String },
    /// A backup at a URL cannot be had. The URL is free of secrets.
    BackupUrl { url: String, why: String },
    /// There is no initdb, or it fails: no throw-away cluster.
    NoScratchCluster { why: String },
    // ---- backups: links and the server for them
    /// The key of links is not one.
    LinkKey { path: PathBuf },
    /// `serve` cannot listen there.
    ServeListen { at: String, why: String, taken: bool },
    // ---- copies: the source's lock and its clients, the pair, the place
    /// The URL on stdin is none. `why` is the rest of a sentence that begins with it, and does not quote it.
    SourceUrl { why: String },
    /// The source does not accept the URL's password.
    SourcePassword { at: String, user: String },
    /// Another migration has the source: its id, app, who and since when as part of a sentence.
    MigrationLocked { database: String, whose: String, is_done: bool },
    /// Another process is about to change the lock, or waits for the source's clients.
    MigrationBusy { database: String, by: String, limit: Duration },
    /// What needs the lock is asked for without it.
    MigrationNotLocked { database: String, id: String },
    /// A source that cannot be written to.
    SourceReadOnly { database: String },
    /// A user that may not do what a migration does to the source.
    NotDatabaseOwner { database: String, user: String },
    /// Sessions that are still in the source, described one by one.
    ClientsStay {
        database: String,
        sessions: Vec<String>,
        limit: Duration,
        /// It was asked for that they are ended.
        terminate: bool,
        /// Why that was refused.
        refused: Option<String>,
    },
    /// `--copy-from` names neither a file nor an instance of the blurb.
    NoSuchStandby { wanted: String },
    /// `--copy-from -`, and there is no second blurb.
    OneBlurb,
    /// The standby that a copy was to come from is of no use for that.
    CopyFrom { name: String, source: String, why: String },
    /// It has not received what its primary keeps for the new one.
    CopyFromBehind { name: String, at: String, wanted: String, limit: Duration },
    /// Why one database cannot be copied to the other, all of it: texts and hints.
    CopyImpossible { database: String, instance: String, problems: Vec<(String, String)> },
    /// A migration fills empty databases only.
    TargetNotEmpty { instance: String, database: String, holds: String },
    /// There is no copy with this id, or not yet one that this can be done with.
    NoCopy { database: String, id: String, why: &'static str },
    /// A database that is called as a copy is, and is none.
    NotThisCopy { name: String, id: String },
    // ---- migrate
    /// Arguments of a migration that make no sense, or name what is not there.
    MigrateUsage { why: String, hint: String },
    /// A URL or a conninfo string among the arguments, with its password.
    PasswordArgument,
    /// The platform's directory holds something that does not keep the contract.
    PlatformMisbehaves { platform: String, path: PathBuf, why: String },
    /// The platform says that it cannot do that. `why` is empty or begins with a colon.
    PlatformCannot { platform: String, verb: String, why: String },
    /// A verb of the platform failed; `why` is what it said.
    PlatformFailed { platform: String, verb: String, why: String, exit: u8 },
    /// A call took too long and was ended.
    PlatformSlow { platform: String, verb: String, limit: Duration },
    /// What should be an agent's answer is none.
    AgentUnknown { who: String },
    /// There is no agent.
    AgentMissing { who: String },
    /// The agent's instance could not be reached.
    AgentUnreachable { who: String, why: String },
    /// The agent ended without a word of its own.
    AgentFailed { who: String, why: String },
    /// The app cannot be migrated so.
    MigrateImpossible { why: String, hint: String },
    /// It is not done for safety.
    MigrateRefused { why: String, hint: String },
    /// A migration of this app runs on this machine. The holder says since when.
    MigrateRuns { app: String, holder: String },
    /// An earlier migration of this app has not come to an end.
    MigrateUnfinished { app: String, id: String, step: String },
    /// It failed and was undone; `left` names what could not be, and is empty when all was.
    MigrateUndone { app: String, step: String, cause: Box<Error>, left: Vec<String>, up: bool },
    /// It failed where it only goes forward, or its way back was stopped.
    MigrateStopped { app: String, step: String, cause: Box<Error>, forward: bool },
    /// The way back of one that was done failed, and was undone.
    MigrateKept { app: String, step: String, cause: Box<Error> },
    /// The way back could not be gone to its end.
    MigrateLeft { app: String, left: Vec<String>, exit: u8, up: bool },
    /// The journal of a migration cannot be read.
    MigrateJournal { path: PathBuf, why: String },
}

const INFO_HINT: &str = "run `dotcloud info db.0` and give what it prints, all of it";
const CONTROL_HINT: &str = "the data directory is damaged, or is not one";

struct Parts {
    exit: Exit,
    text: String,
    hint: Option<String>,
}

impl Error {
    /// A store's error once more: its streams can only lend it.
    pub fn of_a_store(&self) -> Option<Error> {
        Some(match self {
            Error::Interrupted => Error::Interrupted,
            Error::Store { place, action, why } => {
                Error::Store { place: place.clone(), action, why: why.clone() }
            }
            Error::NoObject { place, name } => Error::NoObject { place: place.clone(), name: name.clone() },
            Error::File { action, path, source } => {
                let source = match source.raw_os_error() {
                    Some(number) => std::io::Error::from_raw_os_error(number),
                    None => std::io::Error::new(source.kind(), source.to_string()),
                };
                Error::File { action, path: path.clone(), source }
            }
            Error::StoreDenied { place, why } => {
                Error::StoreDenied { place: place.clone(), why: why.clone() }
            }
            Error::StoreBucket { bucket, endpoint } => {
                Error::StoreBucket { bucket: bucket.clone(), endpoint: endpoint.clone() }
            }
            Error::StoreRegion { bucket, region } => {
                Error::StoreRegion { bucket: bucket.clone(), region: region.clone() }
            }
            Error::StoreUnreachable { place, endpoint, why } => {
                Error::StoreUnreachable { place: place.clone(), endpoint: endpoint.clone(), why: why.clone() }
            }
            _ => return None,
        })
    }

    /// The exit code, the text and the hint of this error, in the only place they are written.
    fn parts(&self) -> Parts {
        use Exit::*;
        let (exit, text, hint): (Exit, String, &str) = match self {
            Error::File { action, path, source } => {
                (Failed, format!("could not {action} {}: {source}", path.display()), "")
            }
            // ---- PostgreSQL's facts
            Error::PgVersion { text } => (
                Failed,
                format!("{text:?} is not a PostgreSQL version"),
                "a version looks like 15.18, 15 or 9.6.24",
            ),
            Error::Lsn { text } => (Failed, format!("{text:?} is not an LSN such as 16/B374D848"), ""),
            Error::SystemId { text } => (
                Failed,
                format!("{text:?} is not a system identifier"),
                "it is a decimal number of 19 digits or so",
            ),
            Error::HistoryLine { file, number: 0, why, .. } => {
                (Failed, format!("{file} cannot be read: {why}"), "")
            }
            Error::HistoryLine { file, number, line, why } => {
                (Failed, format!("line {number} of {file} cannot be read: {why}: {line:?}"), "")
            }
            Error::HistoryFormat { file } => (
                Failed,
                format!("{file} names WAL segments in place of LSNs, as PostgreSQL 9.0 to 9.2 wrote it"),
                "such a standby cannot be pointed at another primary; it has to be copied anew",
            ),
            Error::WalSegmentSize { bytes } => (
                Failed,
                format!("a WAL segment size of {bytes} bytes is not possible"),
                "it is a power of two from 1 MB to 1 GB",
            ),
            Error::WalPage { lsn, source } => {
                (Failed, format!("could not read the WAL page at {lsn}: {source}"), "")
            }
            Error::WalVersion { magic } => (
                Failed,
                format!(
                    "the WAL is of a PostgreSQL version before 10 (page magic {magic:#06X}), which is not read"
                ),
                "",
            ),
            Error::WalUnreadable { lsn, why } => (
                Failed,
                format!("the WAL cannot be read from {lsn} on: {why}"),
                "what it commits is unknown; start the server once, so that it recovers, and stop it again",
            ),
            Error::ControlTooShort { bytes } => {
                (Failed, format!("pg_control is too short ({bytes} bytes)"), CONTROL_HINT)
            }
            Error::ControlByteOrder => (
                Failed,
                "pg_control was written by a machine of the other byte order".to_owned(),
                "a data directory can only be copied between machines of one architecture",
            ),
            Error::ControlVersion { version } => (
                Failed,
                format!("pg_control has the unknown version {version}"),
                "PostgreSQL 9.3 to 18 is known; a newer one needs a newer pgmahout",
            ),
            Error::ControlChecksum { stored, computed } => (
                Failed,
                format!("pg_control is damaged: its checksum is {stored:08X}, its content's {computed:08X}"),
                CONTROL_HINT,
            ),
            Error::ControlField { field, value } => {
                (Failed, format!("pg_control has an impossible {field}: {value}"), CONTROL_HINT)
            }
            Error::BackupLabel { line } => {
                (Failed, format!("the line \"{line}\" of backup_label is missing or cannot be read"), "")
            }
            Error::Conninfo { why } => (Failed, format!("the connection string has {why}"), ""),
            // ---- blurbs
            Error::BlurbEmpty => (
                Usage,
                "the blurb is empty".to_owned(),
                "pipe one in, as in: dotcloud info db.0 | dotcloud run db.1 pgmahout enslave",
            ),
            Error::BlurbTooLong { bytes, limit } => {
                (Usage, format!("{bytes} bytes are no blurb (the limit is {limit})"), INFO_HINT)
            }
            Error::BlurbNotText { position } => {
                (Usage, format!("the blurb is not UTF-8 text (byte {position})"), INFO_HINT)
            }
            Error::BlurbIsError { line } => (
                Usage,
                format!("the blurb is an error message: {line}"),
                "the command in front of the pipe failed; run it alone until it prints the instance's ports",
            ),
            Error::BlurbUnknown { line } => {
                (Usage, format!("the blurb has no ports; it begins with: {line}"), INFO_HINT)
            }
            Error::BlurbSyntax { format, why } => {
                (Usage, format!("this is not valid {format}: {why}"), INFO_HINT)
            }
            Error::BlurbSeveral { names } => (
                Usage,
                format!("the blurb tells of several instances: {}", names.join(", ")),
                "choose one with --from, or ask for one: dotcloud info db.0",
            ),
            Error::BlurbNoSuchInstance { wanted, names } => {
                (Usage, format!("there is no instance {wanted}, only {}", names.join(", ")), "")
            }
            Error::BlurbNoPort { of, what, names } => (
                Usage,
                format!(
                    "the blurb{} has no port for {what}{}",
                    of.as_ref().map_or(String::new(), |of| format!(" of {of}")),
                    if names.is_empty() { String::new() } else { format!(", only {}", names.join(", ")) },
                ),
                "an instance needs an ssh and a pgsql port; run `dotcloud info db.0` to see what it has",
            ),
            Error::BlurbPorts { names } => (
                Usage,
                format!("several ports could be PostgreSQL's: {}", names.join(", ")),
                "name one of them pgsql in dotcloud.yml, or in the blurb",
            ),
            Error::BlurbUrl { port, url, why } => (
                Usage,
                format!("the URL of port {port} {why}: {url}"),
                match why.contains("sslmode") {
                    true => "sslmode is one of disable, allow, prefer, require, verify-ca and verify-full",
                    false => INFO_HINT,
                },
            ),
            Error::EnvironmentInstance { wanted, why } => (
                Usage,
                format!("instance {wanted} is not known here: the environment {why}"),
                "give its blurb instead: dotcloud info db.0 | dotcloud run db.1 pgmahout enslave",
            ),
            // ---- this machine
            Error::SettingsFile { path, why } => (
                Usage,
                format!("{} cannot be understood: {why}", path.display()),
                "`pgmahout config` lists every setting",
            ),
            Error::SettingValue { name, value, wanted } => {
                (Usage, format!("the setting {name} is {value:?}, but has to be {wanted}"), "")
            }
            Error::SettingMissing { name, because } => {
                (Usage, format!("the setting {name} is needed, because {because}"), "")
            }
            Error::NoDataDirectory { candidates } if candidates.is_empty() => (
                Usage,
                "no data directory was found".to_owned(),
                "name it: --data-directory, $PGDATA, or data_directory in ~/pgmahout.yml",
            ),
            Error::NoDataDirectory { candidates } => (
                Usage,
                format!("several data directories were found: {candidates}"),
                "choose one: --data-directory, $PGDATA, or data_directory in ~/pgmahout.yml",
            ),
            Error::NotADataDirectory { path } => (
                Failed,
                format!("{} is not empty and holds no PostgreSQL cluster", path.display()),
                "if it is the right directory, move what is in it elsewhere",
            ),
            Error::NoCluster { path } => (Failed, format!("there is no cluster in {}", path.display()), ""),
            Error::NoControlFile { path } => (
                Failed,
                format!("the cluster in {} has no global/pg_control: it is damaged", path.display()),
                "if nothing of it is needed, move it elsewhere",
            ),
            Error::NoBinDirectory => (
                Failed,
                "PostgreSQL's programs were not found".to_owned(),
                "name their directory: bin_directory in ~/pgmahout.yml, e.g. /usr/lib/postgresql/15/bin",
            ),
            Error::NoProgram { program, directory } => (
                Failed,
                format!("there is no {program} in {}", directory.display()),
                "set bin_directory to the directory of PostgreSQL's programs",
            ),
            Error::WrongAccount { path, owner } => (
                Usage,
                format!("{} belongs to {owner}, and this is another account", path.display()),
                "run pgmahout as the account that runs the server",
            ),
            Error::Spawn { program, source } => (Failed, format!("could not run {program}: {source}"), ""),
            Error::Child { program, status, said } => {
                (Failed, format!("{program} failed ({status}): {said}"), "")
            }
            Error::ChildTooSlow { program, limit } => {
                (Failed, format!("{program} did not end within {} s and was killed", limit.as_secs_f64()), "")
            }
            Error::Locked { path, holder } => (
                Failed,
                format!("another pgmahout is at work on this instance: {holder} ({})", path.display()),
                "wait for its end, then run the command again",
            ),
            Error::Interrupted => {
                (Exit::Interrupted, "interrupted".to_owned(), "run the same command again to complete it")
            }
            Error::Fenced { instance, why } => {
                (Failed, format!("{instance} is stopped and stays down: {}", printable(why)), "")
            }
            Error::JobRuns { verb, source_name, pid } => (
                Failed,
                format!(
                    "the {verb} of {source_name} runs in the background of this instance (process {pid})"
                ),
                "pgmahout wait tells when it is done; to end it, stop that process with SIGTERM",
            ),
            Error::JobGone { verb, source_name } => (
                Exit::Interrupted,
                format!("the {verb} of {source_name} in the background was ended before it was done"),
                "run it again to complete it",
            ),
            Error::JobTooSlow { limit } => (
                Failed,
                format!("the copy in the background is not done after {} s; it goes on", limit.as_secs()),
                "wait again, or with a greater --timeout",
            ),
            Error::ServerCommand { action, manager, why, log } => {
                (Failed, format!("could not {action} the server by {manager}: {why}{}", in_log(log)), "")
            }
            Error::ServerDoesNotStop { data, limit } => (
                Failed,
                format!("the server of {} did not stop within {} s", data.display(), limit.as_secs()),
                "look at its log; a larger stop_timeout may be needed",
            ),
            Error::ServerProcessesLeft { data, pids, limit } => (
                Failed,
                format!(
                    "processes of a server whose postmaster is gone still work in {} after {} s: {}",
                    data.display(),
                    limit.as_secs(),
                    pids.iter().map(i32::to_string).collect::<Vec<_>>().join(", ")
                ),
                "they may still write there: end them by kill, then run the same command again",
            ),
            Error::ServerDown { instance } => (
                Failed,
                format!("the server of {instance} does not run"),
                "start it first; its log tells why it ended",
            ),
            Error::ServerGone { data, log } => (
                Failed,
                format!("the server of {} ended while it was starting{}", data.display(), in_log(log)),
                "",
            ),
            Error::ServerNotReady { limit, why, log } => (
                Failed,
                format!(
                    "the server did not accept connections within {} s: {why}{}",
                    limit.as_secs(),
                    in_log(log)
                ),
                "a larger start_timeout may be needed: a standby first replays to a consistent state",
            ),
            // ---- the other side
            Error::SqlUnreachable { at, why } => (
                Unreachable,
                format!("could not connect to PostgreSQL of {at}: {why}"),
                "is the address right, is the server running, and is its port open from here?",
            ),
            Error::SqlSilent { at, limit } => (
                Unreachable,
                format!("PostgreSQL of {at} did not answer within {} s", limit.as_secs()),
                "does another program listen on that port?",
            ),
            Error::SqlPassword { at, user } => (
                Unreachable,
                format!("PostgreSQL of {at} does not accept the password of {user}"),
                "put the right one into ~/password (or password_file, or PGPASSWORD) of this instance",
            ),
            Error::SqlRefused { at, why } => (Unreachable, format!("PostgreSQL of {at} refuses: {why}"), ""),
            Error::SqlNoTls { at } => (
                Unreachable,
                format!("PostgreSQL of {at} refuses: it offers no TLS, which the URL's sslmode requires"),
                "set ssl to on there; sslmode=prefer takes a connection without TLS",
            ),
            Error::SqlCertificate { at, sslmode, root, flaw } => {
                let (why, hint) = match flaw {
                    CertificateFlaw::Authority { issuer } => (
                        format!("{root} has no authority that signed it; it is signed by {issuer}"),
                        "if it is the right server, name the file with its authority's certificate as sslrootcert",
                    ),
                    CertificateFlaw::Name { host, names } if names.is_empty() => (
                        format!("it has no name, so it is not one for {host}"),
                        "give the server a certificate for that name; sslmode=verify-ca does not look at the name",
                    ),
                    CertificateFlaw::Name { host, names } => (
                        format!("it is for {}, not for {host}", names.join(", ")),
                        "connect by a name that it has, or give the server another one; sslmode=verify-ca does not \
                         look at the name",
                    ),
                    CertificateFlaw::Expired { until } => (
                        format!("it, or one that it rests on, was good until {until}"),
                        "give the server a new one and reload it; sslmode=require without sslrootcert does not look",
                    ),
                    CertificateFlaw::NotYet { from } => (
                        format!("it, or one that it rests on, is good only from {from} on"),
                        "is the clock of one of the two machines wrong?",
                    ),
                    CertificateFlaw::Other { why } => {
                        (why.clone(), "give the server another one, signed by an authority of sslrootcert")
                    }
                };
                let text = format!("the certificate of {at} does not pass sslmode={sslmode}: {why}");
                (Unreachable, printable(&text), hint)
            }
            Error::TlsAsked { why } => (
                Usage,
                format!("what is asked of TLS cannot be done: {why}"),
                "in the URL, sslmode=verify-full and sslrootcert=FILE (or =system) check the server's certificate; \
                 PGSSLMODE and PGSSLROOTCERT stand in for them",
            ),
            Error::TlsFile { what, path, why } => (
                Usage,
                format!("the {what} {} for TLS cannot be used: {why}", path.display()),
                "name another file of this machine (sslrootcert=FILE, or =system; PGSSLROOTCERT), or take an sslmode \
                 that needs none",
            ),
            Error::TlsFileInData { path } => (
                Usage,
                format!("{} for TLS lies in the data directory, which a copy replaces", path.display()),
                "put it elsewhere, such as ~/.postgresql/root.crt, and name it there",
            ),
            Error::TlsNoSystem => (
                Usage,
                "sslrootcert=system: this machine's certificates are not found".to_owned(),
                "install ca-certificates, or set SSL_CERT_FILE to their file",
            ),
            Error::NoReplicationEntry { at, user } => (
                Failed,
                format!("PostgreSQL of {at} lets no replication connection of {user} in from here"),
                "add a line \"host replication <user> <this host> scram-sha-256\" to its pg_hba.conf and reload it",
            ),
            Error::Sql { label, why } => {
                (Failed, format!("{label} answered an SQL statement with: {why}"), "")
            }
            Error::NotSuperuser { user, at } => (
                Failed,
                format!("{user} is no superuser of {at}"),
                "give the superuser in the blurb's pgsql URL, or by the setting user",
            ),
            Error::SshUnreachable { host, why } => (
                Unreachable,
                format!("could not connect to {host} by SSH: {why}"),
                "is the address right, is sshd running there, and is its port open from here?",
            ),
            Error::SshAuthentication { host, user, tried } => (
                Unreachable,
                format!("{host} accepts no key of ours for {user}: {tried}"),
                "add this instance's public key (~/.ssh/id_ed25519.pub) to ~/.ssh/authorized_keys there",
            ),
            Error::HostKeyChanged { host, offered, .. } => {
                (Refused, format!("the host key of {host} has changed; it now shows {offered}"), "")
            }
            Error::HostKeyNotPinned { host, offered, pinned } => (
                Refused,
                format!("{host} shows the host key {offered}, not {pinned}"),
                "if that is expected, give the new fingerprint by --host-key",
            ),
            Error::HostKeyRevoked { host, offered, file } => {
                (Refused, format!("the host key {offered} of {host} is revoked by {}", file.display()), "")
            }
            Error::SshBroken { host, why } => (
                Unreachable,
                format!("the SSH connection to {host} broke: {why}"),
                "run the same command again",
            ),
            Error::RemoteCommand { host, status, said } => (
                Failed,
                format!("a command on {host} failed (exit status {status}): {}", printable(said)),
                "",
            ),
            Error::NoSource { host, said } => {
                (Failed, format!("the agent on {host} did not start: {}", printable(said)), "")
            }
            Error::AgentUpload { host, why } => (
                Failed,
                format!("could not upload the agent to {host}: {why}"),
                "or install this same pgmahout there as ~/bin/pgmahout",
            ),
            Error::OtherMachine { host, theirs, ours } => (
                Failed,
                format!("{host} runs {}, this machine {ours}", printable(theirs)),
                "a data directory can only be copied between machines of one architecture",
            ),
            Error::Relayed { message, exit, .. } => (exit_of(*exit), printable(message), ""),
            Error::SourceFailed { host, why } => {
                (Failed, format!("the agent on {host} failed: {}", printable(why)), "")
            }
            // ---- preflight
            Error::TwoMachines { ssh, ssh_system, sql, sql_system } => (
                Usage,
                format!(
                    "SSH to {ssh} and SQL to {sql} lead to different clusters (system identifiers \
                     {ssh_system} and {sql_system})"
                ),
                "the blurb mixes the ports of two instances; take it from one: dotcloud info db.0",
            ),
            Error::SourceIsTarget { instance } => {
                (Usage, format!("the source is {instance} itself"), "give the blurb of another instance")
            }
            Error::SourceIsOurStandby { source, instance } => (
                Usage,
                format!("{source} is a standby of {instance}"),
                "the other way round? send the blurb of the primary to the standby; or promote the standby first",
            ),
            Error::SourceIsStandby { source } => (
                Refused,
                format!("{source} is itself a standby"),
                "follow its primary, or say --cascade to follow the standby",
            ),
            Error::OtherMajor { source, theirs, ours } => (
                Failed,
                format!("{source} is PostgreSQL {theirs}, and this instance has the programs of {ours}"),
                "a standby needs the same major version: --take-build takes the source's finished build",
            ),
            Error::OtherBlockSize { theirs, ours } => (
                Failed,
                format!("the source has blocks of {theirs} bytes, the programs here are built for {ours}"),
                "a standby needs programs built with the same block size",
            ),
            Error::WalLevel { at, level, .. } => {
                (Failed, format!("wal_level of {at} is {level}: no standby can follow"), "")
            }
            Error::SlotOfStandby { slot, standby } => (
                Refused,
                format!("the slot {slot} is in use: {standby} streams through it"),
                "promote that standby, make it follow another one, or stop it first",
            ),
            Error::NoStreaming { at, version } => (
                Failed,
                format!(
                    "{at} is PostgreSQL {version}, which has no streaming replication: that came with 9.0"
                ),
                "move its data to a newer PostgreSQL by dump and restore",
            ),
            Error::NoFreeSender { at, limit } => (
                Failed,
                format!("all {limit} WAL senders of {at} are in use"),
                "raise max_wal_senders there and restart it",
            ),
            Error::NoFreeSlot { at, limit } => (
                Failed,
                format!("all {limit} replication slots of {at} are in use"),
                "raise max_replication_slots there and restart it, or drop a slot that nobody needs",
            ),
            Error::SlotInUse { slot } => (
                Failed,
                format!("another standby streams from the slot {slot}"),
                "two instances have the same name; set instance in one's ~/pgmahout.yml",
            ),
            Error::SettingTooLow { name, ours, theirs, source } => (
                Failed,
                format!("{name} is {ours} here and {theirs} on {source}: a standby's must not be lower"),
                "raise it in this instance's configuration",
            ),
            Error::NoSpace { path, needed, available } => (
                Failed,
                format!(
                    "{} needs {} and has {} MB",
                    path.display(),
                    megabytes(*needed),
                    available / 1_000_000
                ),
                "make room, or use a larger disk",
            ),
            Error::MountPoint { path } => (
                Failed,
                format!("{} is a mount point, so the cluster in it cannot be moved aside", path.display()),
                "move it yourself, or put the data directory into a directory below the mount point",
            ),
            Error::TablespaceTaken { on_source, here } => (
                Failed,
                format!("the directory {} for the tablespace {on_source} is not empty", here.display()),
                "choose another: --tablespace-mapping OLD=NEW",
            ),
            Error::TablespaceInside { on_source, here } => (
                Failed,
                format!(
                    "the tablespace {on_source} would lie in the data directory, at {}, which is replaced as a whole",
                    here.display()
                ),
                "choose a directory elsewhere: --tablespace-mapping OLD=NEW",
            ),
            Error::UnknownRoot { root } => (
                Failed,
                format!("the tablespace {root} was created during the copy"),
                "run the same command again",
            ),
            Error::NoHistory { timeline } => (
                Failed,
                format!("the source has no history file of its timeline {timeline}"),
                "restore it from the archive into the source's pg_wal",
            ),
            Error::CannotRepoint { why } => (
                Failed,
                format!("repointing is not possible: {why}"),
                "leave --plan away, and what is needed will be copied",
            ),
            Error::CannotDelta { why } => (
                Failed,
                format!("there is nothing here that a copy could be compared with: {why}"),
                "leave --plan away, and everything will be copied",
            ),
            Error::NeedsConfirmation { instance, holds } | Error::WouldOverwrite { instance, holds } => {
                (Refused, format!("{instance} holds {holds}"), "")
            }
            Error::ForeignBackup { text } => (
                Failed,
                format!("another backup is running on the source: {}", printable(text)),
                "wait for its end, or end it by pg_stop_backup()",
            ),
            Error::NotStreaming { limit, log } => (
                Failed,
                format!("the standby runs, but does not stream after {} s{}", limit.as_secs(), in_log(log)),
                "`pgmahout info` tells when it does; running the command again starts from what is here",
            ),
            // ---- promote, wait
            Error::TwoPrimaries { old, .. } => (
                Refused,
                format!(
                    "the old primary at {old} still answers and is writable: there would be two primaries"
                ),
                "",
            ),
            Error::NotAPrimary { instance } => (
                Failed,
                format!("{instance} is a standby, not a primary"),
                "give the blurb of the old primary",
            ),
            Error::FencedAnother { instance, theirs, expected } => (
                Usage,
                format!(
                    "{instance} is not the primary of this standby (its system identifier is {theirs}, \
                     not {expected}); it was not stopped"
                ),
                "give the blurb of the old primary",
            ),
            Error::Superseded { instance, why } => {
                (Refused, format!("the place of {instance} was taken: {}", printable(why)), "")
            }
            Error::SourceSuperseded { source, by, timeline, .. } => (
                Refused,
                format!("{source} was left behind on timeline {timeline}: {by}, has taken over"),
                "",
            ),
            Error::NoSshPeer => (
                Usage,
                "a follower is noted over its own SSH session, and there is none".into(),
                "`pgmahout enslave` on the follower does it",
            ),
            Error::PeerFile { path, why } => (
                Failed,
                format!("what is noted of a peer in {} cannot be read: {why}", path.display()),
                "it is not asked whether it was promoted: look at it yourself, and remove that file; `pgmahout enslave` \
                 on either side notes it again",
            ),
            Error::JobRecord { path, why } => (
                Failed,
                format!("the record {} of what runs in the background cannot be read: {why}", path.display()),
                "job.log beside it has what it said; run the command again",
            ),
            Error::CopyMark { path } => (
                Failed,
                format!(
                    "{} is damaged: whether a restore was under way in this directory cannot be told",
                    path.display()
                ),
                "if this cluster has run since, remove that file; if not, move the data directory elsewhere",
            ),
            Error::FencedForAnother { instance, successor, .. } => (
                Refused,
                format!(
                    "{instance} was stopped for {} already, which may be the primary now: there would be two \
                     primaries",
                    printable(successor)
                ),
                "",
            ),
            Error::FencedOtherTimeline { instance, theirs, ours } => (
                Usage,
                format!(
                    "{instance} wrote on timeline {theirs}, and this standby follows timeline {ours}: it is not \
                     its primary"
                ),
                "give the blurb of the primary that this standby follows; see `pgmahout info`",
            ),
            Error::PausedBySetting { name, ours, wanted } => (
                Failed,
                format!(
                    "replay is paused, because {name} is {ours} here and was {wanted} on the primary; going on \
                     would end the server"
                ),
                "raise it in this instance's configuration, restart the server, then promote",
            ),
            Error::SourceMoved { host } => (
                Failed,
                format!("the data directory on {host} is another one than a moment ago"),
                "run the same command again",
            ),
            Error::LastWalMissing { end, limit } => (
                Failed,
                format!(
                    "the old primary's WAL ends at {end}, but that did not arrive here within {} s; \
                     nothing was promoted",
                    limit.as_secs()
                ),
                "look at `pgmahout info` here; without --fence the standby is promoted with what it has",
            ),
            Error::NoTriggerFile => (
                Failed,
                "recovery.conf names no trigger_file, and PostgreSQL 9.0 is promoted by nothing else"
                    .to_owned(),
                "add trigger_file = '/path' to recovery.conf and restart the standby",
            ),
            Error::PromotionTooSlow { limit } => (
                Failed,
                format!("recovery has not ended after {} s; it goes on", limit.as_secs()),
                "run `pgmahout promote` again to wait longer",
            ),
            Error::NotCaughtUp { limit, behind, log } => (
                Failed,
                format!("still {behind} bytes behind after {} s{}", limit.as_secs(), in_log(log)),
                "run `pgmahout wait` again to wait longer",
            ),
            Error::BlurbDoesNotCome { limit } => (
                Usage,
                format!("the blurb on stdin has not ended after {} s", limit.as_secs()),
                "pipe it in: dotcloud info db.0 | dotcloud run db.1 pgmahout enslave; or use --info FILE",
            ),
            Error::BlurbFromTerminal => (
                Usage,
                "the blurb is expected on stdin, and stdin is a terminal".to_owned(),
                "pipe it in: dotcloud info db.0 | dotcloud run db.1 pgmahout enslave; or use --info FILE",
            ),
            Error::NoEnvironment { home } => (
                Usage,
                format!("there is no environment.json in {} to look the instance up in", home.display()),
                "give its blurb instead: dotcloud info db.0 | dotcloud run db.1 pgmahout enslave",
            ),
            // ---- credentials
            Error::NoPassword { instance, role, .. } => {
                (Failed, format!("no password of {role} is known on {instance}"), "")
            }
            Error::NoRole { role, instance } => (
                Failed,
                format!("there is no role {role} on {instance}"),
                "psql -c '\\du' shows those that there are",
            ),
            Error::OnStandby { instance, what, primary } => {
                let whose = primary
                    .as_ref()
                    .map_or("its primary's".to_owned(), |at| format!("that of its primary, {at}"));
                (
                    Failed,
                    format!("{instance} is a standby: its {what} is {whose}"),
                    "run the command on the primary",
                )
            }
            Error::PasswordInput { why } => (
                Usage,
                format!("the new password has to come on stdin, on one line: {why}"),
                "for example: dotcloud run db.0 pgmahout --json credentials | jq -r .password | \
                 dotcloud run db.1 pgmahout credentials --adopt",
            ),
            Error::NotThePassword { role, at } => (
                Failed,
                format!("this is not the password of {role} on {at}; nothing was changed"),
                "`pgmahout credentials` on the primary shows the right one",
            ),
            Error::NewPasswordRefused { role, why } => (
                Failed,
                format!(
                    "the new password of {role} was not accepted, so the old one is in force again: {why}"
                ),
                "does its line in pg_hba.conf want scram-sha-256 while password_encryption is md5, or is it \
                 past its VALID UNTIL?",
            ),
            // ---- plans
            Error::PlanName { name } => (
                Usage,
                format!("{name:?} is no name for a plan"),
                "letters, digits, dots, dashes and underscores, as in: pgmahout plan ronin",
            ),
            Error::PlanLine { number, line } => (
                Usage,
                format!("line {number} of the plan's settings cannot be understood: {line}"),
                "it has to be as in postgresql.conf: shared_buffers = 425MB",
            ),
            Error::PlanInput { why } => (
                Usage,
                format!("the plan's settings have to come on stdin: {why}"),
                "for example: echo 'work_mem = 8MB' | pgmahout plan ronin; for a plan without any: </dev/null",
            ),
            Error::PlanSetting { plan, name, why } => (
                Failed,
                format!("the plan {plan} cannot have {name}: {why}; nothing was changed"),
                "correct or remove its line",
            ),
            Error::PlanMemory { plan, wanted, available, total } => (
                Failed,
                format!(
                    "the plan {plan} wants {} of shared_buffers, and of the {} of this machine {} are available",
                    megabytes(*wanted),
                    megabytes(*total),
                    megabytes(*available)
                ),
                "choose a smaller plan, or a machine with more memory",
            ),
            Error::PlanDoesNotStart { plan, why, back: None } => (
                Failed,
                format!(
                    "the server does not start with the plan {plan}; it has its former settings again and \
                     accepts connections: {why}"
                ),
                "the server's log says which setting it is",
            ),
            Error::PlanDoesNotStart { plan, why, back: Some(back) } => (
                Failed,
                format!(
                    "the server does not start with the plan {plan} ({why}); its former settings are back, but \
                     with them it does not start either: {back}"
                ),
                "the server's log says why",
            ),
            Error::NotReloaded { limit } => (
                Failed,
                format!(
                    "the server did not read its settings anew within {} s; nothing was changed",
                    limit.as_secs()
                ),
                "its log says why; SELECT * FROM pg_file_settings WHERE error IS NOT NULL shows wrong lines",
            ),
            Error::PlanFile { path, why } => (
                Failed,
                format!("{} cannot be understood: {why}", path.display()),
                "remove it; the next `pgmahout plan NAME` writes it anew",
            ),
            // ---- builds of PostgreSQL
            Error::ReleaseText { text } => (
                Usage,
                format!("{text:?} is not a PostgreSQL version"),
                "17 is the newest 17.x, 17.6 is that one; 9.6 and 9.6.24 likewise",
            ),
            Error::NoVersionNamed { looked_at } => (
                Usage,
                format!("no version is named: {looked_at}"),
                "name one, as in: pgmahout build-version 17",
            ),
            Error::MirrorUrl { url, why } => (
                Usage,
                format!("the mirror {url:?} {why}"),
                "source_mirrors are URLs such as https://ftp.postgresql.org/pub/source or file:///srv/mirror",
            ),
            Error::MirrorsDown { wanted, why } => (
                Unreachable,
                format!("no mirror could be asked for PostgreSQL {wanted}: {}", printable(&why.join("; "))),
                "try again later, or name other mirrors in source_mirrors; `pgmahout build-version --list` shows \
                 what is built here",
            ),
            Error::UnknownRelease { wanted, mirrors, .. } => {
                (Failed, format!("there is no PostgreSQL {wanted} at {}", mirrors.join(", ")), "")
            }
            Error::NoChecksum { url } => (
                Failed,
                format!("{url} has no published checksum ({url}.sha256)"),
                "if you have it from elsewhere: --sha256 HEX",
            ),
            Error::ChecksumText { url } => (
                Failed,
                format!("{url} holds no SHA-256 of the tarball"),
                "choose another mirror in source_mirrors, or give the checksum by --sha256 HEX",
            ),
            Error::ChecksumArgument { text } => {
                (Usage, format!("{text:?} is not a SHA-256: it has 64 hexadecimal digits"), "")
            }
            Error::WrongChecksum { url, expected, found } => (
                Failed,
                format!(
                    "{url} has the SHA-256 {found}, but {expected} was published; the download was removed"
                ),
                "run the command again; if it stays so, the tarball was changed: choose another mirror",
            ),
            Error::DownloadBroke { url, why, .. } => {
                (Unreachable, format!("the download of {url} broke: {}", printable(why)), "")
            }
            Error::ArchiveEscapes { archive, entry, why } => (
                Failed,
                format!("{archive} was refused: {} {why}", printable(&format!("{entry:?}"))),
                "it is not a tarball that PostgreSQL's project made; choose another mirror",
            ),
            Error::ArchiveDamaged { archive, why } => {
                (Failed, format!("{archive} cannot be unpacked: {}", printable(why)), "")
            }
            Error::BuildOption { option, why } => (
                Usage,
                format!("the option {option:?} {why}"),
                "as in: pgmahout build-version 17 -- --with-perl CFLAGS=-O3",
            ),
            Error::MissingTools { version, missing } => {
                let names: Vec<_> = missing.iter().map(|(tool, _)| tool.as_str()).collect();
                (
                    Failed,
                    format!("building PostgreSQL {version} needs {}: not on this machine", names.join(", ")),
                    "",
                )
            }
            Error::MissingLibraries { missing } => {
                let names: Vec<_> = missing.iter().map(|(name, _)| *name).collect();
                (Failed, format!("{} was asked for and is not on this machine", names.join(", ")), "")
            }
            Error::BuildFailed { release, phase, status, tail, .. } => (
                Failed,
                format!(
                    "{phase} of PostgreSQL {release} failed ({status}); nothing was changed. Its last words:\n{}",
                    printable(tail)
                ),
                "",
            ),
            Error::BuildDoesNotRun { program, release, why, .. } => (
                Failed,
                format!("{program} of PostgreSQL {release} does not run here: {}", printable(why)),
                "",
            ),
            Error::NotOurHome { home, owner } => (
                Usage,
                format!("{} belongs to {owner}, and this is another account", home.display()),
                "run pgmahout as the account that runs the server",
            ),
            Error::OtherDataMajor { data, has, wanted } => (
                Failed,
                format!(
                    "{} is of PostgreSQL {has}: a server of {wanted} cannot use it; nothing was changed",
                    data.display()
                ),
                "",
            ),
            Error::LinkTaken { path } => (
                Failed,
                format!("{} is not a symbolic link, so it cannot be switched", path.display()),
                "rename it to postgresql-<its version>; or build beside it with --no-switch",
            ),
            Error::NotFromLink { programs, because } => (
                Failed,
                format!(
                    "this instance's server is started from {programs}, not from ~/postgresql: {because}"
                ),
                "build with --no-switch and change that yourself; or install that version as a package",
            ),
            Error::SwitchedBack { release, previous, why } => (
                Failed,
                format!(
                    "the server did not start with PostgreSQL {release} and runs with {previous} again: {why}"
                ),
                "",
            ),
            Error::NothingStarts { release, previous, why, second } => (
                Failed,
                format!(
                    "the server does not run: with PostgreSQL {release}: {why}; with {previous}, after switching \
                     back: {second}"
                ),
                "mend what is said last, then start the server, or run the command again",
            ),
            Error::OtherProgramsRun { release, running } => (
                Failed,
                format!(
                    "~/postgresql points to {release}, but the server that was started is {}",
                    running.display()
                ),
                "let what starts the server use ~/postgresql/bin",
            ),
            Error::NoSuchBuild { release, known } => (
                Failed,
                match known.is_empty() {
                    true => format!("there is no build of PostgreSQL {release} here, nor any other"),
                    false => {
                        format!(
                            "there is no build of PostgreSQL {release} here, only of {}",
                            known.join(", ")
                        )
                    }
                },
                "",
            ),
            Error::BuildInUse { release, by } => (
                Failed,
                format!("PostgreSQL {release} is in use by {by}, and stays"),
                "switch to another one first: pgmahout build-version VERSION",
            ),
            Error::NothingToGive { instance, has } => (
                Failed,
                format!("{instance} has no such build to give: {has}"),
                "build that version here: pgmahout build-version VERSION --no-switch",
            ),
            Error::OtherLibc { host, theirs, ours } => (
                Failed,
                format!("the build of {host} is of another kind of machine ({theirs}); this one is {ours}"),
                "build it here: pgmahout build-version VERSION",
            ),
            // ---- logs
            Error::NoLog { looked_at } => (
                Failed,
                format!("no log of this server was found: there is no {looked_at}"),
                "logging_collector = on with log_destination = 'stderr', 'csvlog' or 'jsonlog' gives one at the \
                 next restart; so does a manager that keeps the server's stderr in a file (pg_ctl -l)",
            ),
            Error::LogElsewhere { destination } => (
                Failed,
                format!("the server's log goes to {destination} only, which is not read here"),
                "look there (journalctl -t postgres, or the file that syslog writes), or add stderr to \
                 log_destination",
            ),
            Error::LogUnreadable { path, source } => {
                (Failed, format!("the log {} cannot be read: {source}", path.display()), "")
            }
            Error::SinceText { text } => (
                Usage,
                format!("{text:?} is neither a time nor a while"),
                "a time is 2026-11-21T15:40:00Z, a while is 90s, 10m, 2h or 1d",
            ),
            // ---- sessions
            Error::NoServer { instance } => (
                Failed,
                format!("the server of {instance} does not run: there is nothing to connect to"),
                "start it; `pgmahout logs` says why it stopped",
            ),
            Error::NoSuchSession { pid } => {
                (Failed, format!("there is no session {pid}"), "`pgmahout ps --all` shows all of them")
            }
            Error::NotAClient { pid, kind, name } => {
                let name = name.as_ref().map(|name| format!(" of {}", printable(name))).unwrap_or_default();
                let article = if kind.starts_with(['a', 'e', 'i', 'o']) { "an" } else { "a" };
                (Refused, format!("{pid} is no client session but {article} {kind}{name}"), "")
            }
            Error::NothingToCancel { pid, state } => (
                Failed,
                format!("session {pid} runs no statement that could be cancelled: it is {state}"),
                "--force ends the session and the transaction that it may have open",
            ),
            Error::DoesNotStop { pids, told, ended, limit } => {
                let pids = pids.iter().map(|pid| pid.to_string()).collect::<Vec<_>>().join(", ");
                let (what, still) = match ended {
                    true => ("end", "goes on"),
                    false => ("cancel its statement", "still runs it"),
                };
                let seconds = limit.as_secs();
                let text = match told {
                    1 => format!("session {pids} was told to {what} and {still} after {seconds} s"),
                    _ => format!("of {told} sessions told to {what} one {still} after {seconds} s: {pids}"),
                };
                (Failed, text, "")
            }
            Error::StatementsNotCounted { instance, .. } => (
                Failed,
                format!("{instance} does not count its statements: pg_stat_statements is not preloaded"),
                "",
            ),
            Error::StatementsNotShown { instance } => (
                Failed,
                format!("no database of the standby {instance} has the extension pg_stat_statements"),
                "run `pgmahout outliers` on its primary, which creates it; it comes here by replication",
            ),
            Error::NoPsql { directory } => {
                let directory = directory.as_ref().map(|d| format!("in {} nor ", d.display()));
                let either = if directory.is_some() { "neither " } else { "not " };
                (
                    Failed,
                    format!("there is no psql: {either}{}in PATH", directory.unwrap_or_default()),
                    "apt-get install postgresql-client, or use a build that has it: pgmahout build-version",
                )
            }
            Error::LibraryMissing { library, source, directory } => (
                Failed,
                format!(
                    "{source} preloads {library}, which is not in {}: with its settings the server would not start",
                    directory.display()
                ),
                "",
            ),
            // ---- backups: the store and what lies in it
            Error::BackupIdText { text } => (
                Usage,
                format!("{text:?} is not a backup's name"),
                "it looks like b001 or a017; pgmahout backup list shows them",
            ),
            Error::NoBackup { id, place } => (
                Failed,
                format!("there is no backup {id} in {place}"),
                "pgmahout backup list shows those that are",
            ),
            Error::Manifest { id, why } => (
                Failed,
                format!("the manifest of {id} cannot be read: {why}"),
                "update pgmahout, or delete this backup; the others are not touched",
            ),
            Error::BackupDamaged { id, place, why } => (
                Failed,
                format!("the backup {id} in {place} is damaged: {why}"),
                "use another one; pgmahout backup list shows them, pgmahout backup verify proves one",
            ),
            Error::NoObject { place, name } => (Failed, format!("there is no {name} in {place}"), ""),
            Error::Store { place, action, why } => {
                (Unreachable, format!("could not {action} {place}: {why}"), "")
            }
            // ---- backups: taking one
            Error::CompressionText { text } => (
                Usage,
                format!("{text:?} is not a compression"),
                "it is none, gzip, zstd or auto; gzip and zstd with a level if you like: gzip:9 (1 to 9), zstd:3 (1 \
                 to 19)",
            ),
            Error::NoDatabase { database, there } => {
                (Failed, format!("there is no database {database:?}; there are: {}", there.join(", ")), "")
            }
            Error::WhichDatabase { there } => (
                Usage,
                format!("there are several databases: {}", there.join(", ")),
                "say which: pgmahout backup capture DATABASE",
            ),
            Error::Dump { database, status, said } => {
                (Failed, format!("pg_dump of {database} failed ({status}): {}", printable(said)), "")
            }
            Error::Archive { why } => {
                (Failed, format!("what pg_dump wrote is not a whole archive: {why}"), "try again")
            }
            Error::NoZstd { tool } => (
                Usage,
                format!(
                    "{} cannot read zstd, and so nobody could restore the backup with it",
                    tool.display()
                ),
                "use --compress gzip, or a build of PostgreSQL 16 or later with zstd: pgmahout build-version",
            ),
            Error::StoreCredentials { place, looked } => (
                Failed,
                format!("there are no credentials for {place}: {looked}"),
                "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or write ~/.aws/credentials",
            ),
            Error::StoreDenied { place, why } => (
                Failed,
                format!("access to {place} is denied: {why}"),
                "give a key that is not revoked (AWS_ACCESS_KEY_ID, else ~/.aws/credentials), with the rights \
                 s3:ListBucket, GetObject, PutObject, DeleteObject and AbortMultipartUpload",
            ),
            Error::StoreBucket { bucket, endpoint } => (
                Failed,
                format!("there is no bucket {bucket} at {endpoint}"),
                "create it, or correct store, store_endpoint or store_region",
            ),
            Error::StoreRegion { bucket, region } => (
                Failed,
                format!("the bucket {bucket} is not in the region {region}"),
                "say with store_region where it is",
            ),
            Error::StoreUnreachable { place, endpoint, why } => (
                Unreachable,
                format!("could not reach {endpoint} for {place}: {why}"),
                "is the service up, and within reach of this machine? store_endpoint says where it is",
            ),
            Error::StoreDirectory { path, why } => (
                Failed,
                format!("{} cannot hold backups: {why}", path.display()),
                "is its disk mounted? create the directory for this account, or correct the setting store",
            ),
            Error::BackupKeyFile { why } => (
                Failed,
                format!("the key file for backups cannot be used: {why}"),
                "age-keygen -o FILE makes one, chmod 600 FILE keeps it; the setting backup_key_file names it",
            ),
            Error::NoBackupKey { id, wanted: "passphrase" } => (
                Failed,
                format!("the backup {id} is encrypted with a passphrase"),
                "give it in the environment: PGMAHOUT_BACKUP_PASSPHRASE",
            ),
            Error::NoBackupKey { id, .. } => (
                Failed,
                format!("the backup {id} is encrypted, and there is no secret key to open it"),
                "the setting backup_key_file names the file with the identity (AGE-SECRET-KEY-1...) it was made for",
            ),
            Error::WrongBackupKey { id, wanted } => (
                Failed,
                format!("the backup {id} does not open with this {wanted}"),
                "give the one that it was made with: backup_key_file or PGMAHOUT_BACKUP_PASSPHRASE",
            ),
            Error::FileExists { path } => {
                (Refused, format!("{} is there already", path.display()), "--force overwrites it")
            }
            Error::BackupWalGone { segment, directory } => (
                Failed,
                format!("the WAL segment {segment} that the backup needs is not in {}", directory.display()),
                "take it again; if it happens again, raise wal_keep_size (wal_keep_segments before 13), or give \
                 the server a free replication slot",
            ),
            Error::UnfinishedCopy { path } => (
                Failed,
                format!("{} is a copy that was not completed: there is nothing to back up", path.display()),
                "run the command again that made it",
            ),
            Error::ClusterBusy { path, pid } => (
                Failed,
                format!("the server of {} is down, but its process {pid} still runs", path.display()),
                "wait until it has ended, or end it, and take the backup again",
            ),
            Error::StartedMeanwhile { instance } => (
                Failed,
                format!("the server of {instance} was started while its files were copied"),
                "take the backup again: it is taken from the running server then",
            ),
            Error::NoRoomForBackup { why } => (
                Failed,
                format!("the server cannot begin a backup on its full disk: {why}"),
                "stop it, and take the backup again: its files are copied as they lie then, and nothing is written",
            ),
            Error::StandbyBackup { version } => (
                Failed,
                format!("PostgreSQL {version} cannot back up a standby while it runs"),
                "take it on the primary, or stop the standby first",
            ),
            // ---- backups: restoring and verifying
            Error::TarDamaged { why } => {
                (Failed, format!("it is no whole physical backup: {why}"), "use another one")
            }
            Error::TarEscapes { entry, why } => (
                Failed,
                format!("{:?} in the tar {why}: nothing of it is used", printable(entry)),
                "pgmahout made no such backup; look where it comes from",
            ),
            Error::BackupOtherVersion { theirs, ours } => (
                Failed,
                format!("it is a cluster of PostgreSQL {theirs}, and the programs here are {ours}"),
                "build that version first: pgmahout build-version; a logical backup can be restored to any later \
                 version",
            ),
            Error::RestoredDoesNotStart { why, log } => (
                Failed,
                format!(
                    "the restored cluster does not come up: {why}
{log}"
                ),
                "what was here before is untouched where it was to be kept",
            ),
            Error::BackupTool { program, wanted, found } => {
                let newest = found.as_ref().map(|found| format!(" (the newest is {found})"));
                (
                    Failed,
                    format!(
                        "no {program} of version {wanted} or later is here{}",
                        newest.unwrap_or_default()
                    ),
                    "",
                )
            }
            Error::ReplacesDatabase { instance, database, holds } => {
                (Refused, format!("the database {database} of {instance} holds {holds}"), "")
            }
            Error::RestoreWhere { source_name } => (
                Usage,
                format!("{source_name} does not say of which database it is"),
                "name the database to restore into: pgmahout backup restore SOURCE DATABASE",
            ),
            Error::RestoreTemplate { database } => (
                Usage,
                format!("{database} is a template: what is in it gets into every new database"),
                "name another database",
            ),
            Error::RestoreRoles { roles, instance } => (
                Failed,
                format!("the backup needs roles that {instance} does not have: {}", roles.join(", ")),
                "create them, or add --no-owner: everything belongs to the database's owner then, and nothing is granted",
            ),
            Error::RestoreExtensions { extensions, instance } => (
                Failed,
                format!(
                    "the backup needs extensions that {instance} does not have: {}",
                    extensions.join(", ")
                ),
                "install their packages for this PostgreSQL; pg_available_extensions shows those that are here",
            ),
            Error::DatabaseTied { database, by } => (
                Failed,
                format!("{database} cannot be replaced while it has {}", by.join(", ")),
                "drop them, or restore into another database",
            ),
            // ---- copy: the data
            Error::CopyFailed { what, side, why, is_full } => (
                Failed,
                format!("{what} could not be copied: {side}: {}", printable(why)),
                if *is_full { "make room on the disk of the copy's server" } else { "" },
            ),
            Error::CopySource { source_name, why } => {
                (Failed, format!("{source_name} cannot be copied: {why}"), "")
            }
            Error::CopyDiffers { what } => (
                Failed,
                format!("the copy does not hold what the source does: {}", what.join("; ")),
                "has somebody written to the source meanwhile? copy it anew",
            ),
            // ---- copy: the data, end
            Error::RestoreFailed { program, status, said } => {
                let hint = match said.contains("role \"") && said.contains("does not exist") {
                    true => "create the role, or add --no-owner",
                    false => "the old database is untouched",
                };
                (Failed, format!("{program} failed ({status}): {}", printable(said)), hint)
            }
            Error::RestoredDiffers { what } => (
                Failed,
                format!("what was restored is not what the manifest says: {}", what.join("; ")),
                "use another backup; pgmahout backup list shows them",
            ),
            Error::StructureDamaged { database, said } => {
                (Failed, format!("the structure of {database} is damaged: {}", printable(said)), "")
            }
            Error::NotVerified { id, why } => (
                Failed,
                format!("the backup {id} is not good: {why}"),
                "take another one now: pgmahout backup capture; and look at the disk that it lies on",
            ),
            Error::NotSwapped { database, why } => (
                Failed,
                format!("{database} could not be replaced: {why}"),
                "it is as it was; run the same command again",
            ),
            Error::NotABackup { source, why } => (
                Failed,
                format!("{source} is no backup: {why}"),
                "a backup is what pg_dump -Fc writes, or what pgmahout backup has stored",
            ),
            Error::BackupUrl { url, why } => (
                Unreachable,
                format!("could not read {url}: {why}"),
                "a link is good for a while only; pgmahout backup url gives a new one",
            ),
            Error::NoScratchCluster { why } => (
                Failed,
                format!("no throw-away cluster could be made: {why}"),
                "this says nothing about the backup",
            ),
            // ---- backups: links and the server for them
            Error::LinkKey { path } => (
                Failed,
                format!("{} is not a key for links: it is too short", path.display()),
                "remove it: a new one is made, and the links that were given are good no more",
            ),
            Error::ServeListen { at, why, taken } => (
                Failed,
                format!("cannot listen on {at}: {why}"),
                match taken {
                    true => {
                        "another pgmahout serve, or another program, has it; stop that, or set serve_listen"
                    }
                    false => "set serve_listen to an ADDRESS:PORT of this machine, such as 127.0.0.1:5480",
                },
            ),
            // ---- copies
            Error::SourceUrl { why } => (
                Usage,
                format!("the source's URL {why}"),
                "it has to be postgres://user:password@host:port/database, on the first line of stdin",
            ),
            Error::SourcePassword { at, user } => (
                Unreachable,
                format!("PostgreSQL of {at} does not accept the password of {user}"),
                "is the URL still the right one?",
            ),
            Error::MigrationLocked { database, whose, is_done: false } => (
                Refused,
                format!("{database} is locked by the migration {whose} and did not complete"),
                "there, --resume completes it and --rollback undoes it; when that machine is lost, --abandon makes the \
                 database writable again and takes the lock away",
            ),
            Error::MigrationLocked { database, whose, is_done: true } => (
                Refused,
                format!(
                    "{database} is the old database of the migration {whose}; it is complete, and the data is in the new \
                     database"
                ),
                "there, --rollback goes back; --abandon makes this database writable again and takes the lock away",
            ),
            Error::MigrationBusy { database, by, limit } => (
                Failed,
                format!(
                    "another pgmahout has been at work on {database} for more than {} s: {by}",
                    limit.as_secs()
                ),
                "wait for its end, or end that session, and run the command again",
            ),
            Error::MigrationNotLocked { database, id } => (
                Failed,
                format!("{database} is not locked by the migration {id}"),
                "take the lock first: pgmahout copy-part lock",
            ),
            Error::SourceReadOnly { database } => (
                Failed,
                format!("{database} is on a standby, which can be read and not be locked"),
                "give the URL of its primary",
            ),
            Error::NotDatabaseOwner { database, user } => (
                Failed,
                format!(
                    "{user} does not own {database}, so that it can neither lock it nor make it read-only"
                ),
                "give the URL of its owner, or of a superuser",
            ),
            Error::ClientsStay { database, sessions, limit, terminate, refused } => (
                Refused,
                format!(
                    "after {} s {database} still has clients that may write: {}{}",
                    limit.as_secs(),
                    printable(&sessions.join("; ")),
                    refused.as_ref().map_or(String::new(), |why| format!(
                        "; they could not be ended: {}",
                        printable(why)
                    ))
                ),
                match (terminate, refused) {
                    (false, _) => "end them there, wait longer, or add --terminate, which ends them",
                    (true, Some(_)) => "end them there, as a superuser or as their own role, or wait longer",
                    (true, None) => {
                        "end them there, or wait longer; a prepared transaction ends by COMMIT PREPARED or ROLLBACK PREPARED"
                    }
                },
            ),
            Error::NoSuchStandby { wanted } => (
                Usage,
                format!(
                    "--copy-from: {} is no file, and the blurb tells of no such instance",
                    printable(wanted)
                ),
                "give a file with the standby's blurb, or a blurb that tells of both: dotcloud info db",
            ),
            Error::OneBlurb => (
                Usage,
                "no second blurb came, that of the standby to copy from".into(),
                "it follows the first after a line ---; --copy-from FILE names a file with it",
            ),
            Error::CopyFrom { name, source, why } => (
                Failed,
                format!("a copy of {source} cannot come from {name}: {why}"),
                "--copy-from names a standby that follows the source; without it the source itself is copied",
            ),
            Error::CopyFromBehind { name, at, wanted, limit } => (
                Failed,
                format!(
                    "after {} s {name} has WAL up to {at} only, and its primary keeps it from {wanted} on",
                    limit.as_secs()
                ),
                "see whether it streams (pgmahout info there); without --copy-from the source itself is copied",
            ),
            Error::CopyImpossible { database, instance, problems } => {
                let texts: Vec<_> = problems.iter().map(|(text, _)| text.as_str()).collect();
                (Failed, format!("{database} cannot be copied to {instance}: {}", texts.join("; ")), "")
            }
            Error::TargetNotEmpty { instance, database, holds } => (
                Refused,
                format!("the database {database} of {instance} holds {holds}"),
                "give an empty one, or drop what is in it; pgmahout copy --confirm replaces it, a migration never does",
            ),
            Error::NoCopy { database, id, why } => (
                Failed,
                format!("there is no copy {id} for {database} {why}"),
                "fill and compare it first: pgmahout copy-part fill, pgmahout copy-part compare",
            ),
            Error::NotThisCopy { name, id } => (
                Failed,
                format!("the database {name} is not of the copy {id}, although it is called so"),
                "look what it is, and rename or drop it",
            ),
            // ---- migrate
            Error::MigrateUsage { why, .. } => (Usage, why.clone(), ""),
            Error::PasswordArgument => (
                Usage,
                "a URL with a password is no argument: everybody on this machine can read it".into(),
                "put it on stdin (pgmahout copy < url), or into a file that only you can read; and change the \
                 password, as it may be known by now",
            ),
            Error::PlatformMisbehaves { platform, why, .. } => {
                (Failed, format!("the platform {platform} does not keep its contract: {why}"), "")
            }
            Error::PlatformCannot { platform, verb, why } => {
                (Failed, format!("the platform {platform} cannot do that ({verb}){why}"), "")
            }
            Error::PlatformFailed { platform, verb, why, exit } => {
                (exit_of(*exit), format!("the platform {platform} failed ({verb}): {why}"), "")
            }
            Error::PlatformSlow { platform, verb, limit } => (
                Unreachable,
                format!("the platform {platform} did not answer within {} seconds ({verb})", limit.as_secs()),
                "look at it, or raise HERD_PLATFORM_TIMEOUT",
            ),
            Error::AgentUnknown { who } => (
                Failed,
                format!("what {who} answered is not pgmahout's"),
                "is its pgmahout the one of this herd?",
            ),
            Error::AgentMissing { who } => (
                Failed,
                format!("there is no pgmahout on {who}"),
                "copy target/*/release/pgmahout to its ~/bin",
            ),
            Error::AgentUnreachable { who, why } => {
                let but = if why.is_empty() { String::new() } else { format!(": {why}") };
                (Unreachable, format!("{who} could not be reached{but}"), "is its machine up?")
            }
            Error::AgentFailed { who, why } => (Failed, format!("pgmahout on {who} failed: {why}"), ""),
            Error::MigrateImpossible { why, .. } => (Failed, why.clone(), ""),
            Error::MigrateRefused { why, .. } => (Refused, why.clone(), ""),
            Error::MigrateRuns { app, holder } => (
                Refused,
                format!("a migration of {app} runs on this machine: {holder}"),
                "wait for its end; pgmahout migrate --status shows how far it is",
            ),
            Error::MigrateUnfinished { app, id, step } => (
                Refused,
                format!("the migration {id} of {app} has not come to its end: {step}"),
                "--resume goes on, --rollback goes back; --status shows all of it",
            ),
            Error::MigrateUndone { app, step, cause, left, up } => (
                cause.exit(),
                format!(
                    "{cause} ({step}); {}",
                    if left.is_empty() {
                        format!("all was undone: {app} is as it was")
                    } else {
                        left_text(app, left, *up)
                    }
                ),
                "",
            ),
            Error::MigrateStopped { app, step, cause, forward } => (
                cause.exit(),
                match forward {
                    true => format!(
                        "{cause} ({step}); {app} has the new database, and the rest is still to be done"
                    ),
                    false => format!("{cause} ({step}); {app} is not as it was yet"),
                },
                match forward {
                    true => "--resume completes it; --rollback goes back to the old database",
                    false => "--rollback completes the way back; --status shows what is left",
                },
            ),
            Error::MigrateKept { app, step, cause } => (
                cause.exit(),
                format!("{cause} ({step}); {app} goes on with the new database, as before"),
                "",
            ),
            Error::MigrateLeft { app, left, exit, up } => {
                (exit_of(*exit), left_text(app, left, *up), ROLLBACK_HINT)
            }
            Error::MigrateJournal { path, why } => (
                Failed,
                format!("the journal {} cannot be read: {why}", path.display()),
                "it is of another version, or damaged; when its migration is over, or freed by --abandon, remove that file",
            ),
        };
        let hint = match self {
            Error::MigrateUsage { hint, .. }
            | Error::MigrateImpossible { hint, .. }
            | Error::MigrateRefused { hint, .. } => hint.clone(),
            Error::PlatformMisbehaves { path, .. } => {
                format!("see {} and scripts/platforms/README.md", path.display())
            }
            Error::MigrateUndone { left, .. } if !left.is_empty() => ROLLBACK_HINT.to_owned(),
            Error::MigrateKept { cause, .. } | Error::MigrateUndone { cause, .. } => match &**cause {
                Error::Interrupted => "begin it again with the same command".to_owned(),
                cause => cause.hint().unwrap_or_default(),
            },
            Error::File { source, .. } => file_hint(source).to_owned(),
            Error::LogUnreadable { source, .. } if source.kind() == std::io::ErrorKind::PermissionDenied => {
                "run pgmahout as the account that runs the server, or let this one read it (log_file_mode = 0640 \
                 and the server's group)"
                    .into()
            }
            Error::UnknownRelease { offered, .. } => offered.clone(),
            Error::CopyImpossible { problems, .. } => {
                let hints: Vec<_> = problems.iter().map(|(_, hint)| hint.as_str()).collect();
                hints.into_iter().filter(|hint| !hint.is_empty()).collect::<Vec<_>>().join("; ")
            }
            Error::Dump { said, .. } if said.contains("conflict with recovery") => {
                "this standby took replay before the dump: set max_standby_streaming_delay = -1 (or a longer one) or \
                 hot_standby_feedback = on here, or capture on the primary"
                    .into()
            }
            Error::Dump { said, .. } if said.contains("lock timeout") || said.contains("statement timeout") => {
                "a table is locked by somebody: pgmahout locks shows whom; then capture again".into()
            }
            Error::DownloadBroke { kept: 0, .. } => "run the same command again".into(),
            Error::DownloadBroke { kept, .. } => {
                format!("run the same command again: it goes on after the {} that are here", megabytes(*kept))
            }
            Error::MissingTools { missing, .. } => {
                let packages: std::collections::BTreeSet<_> =
                    missing.iter().map(|(_, package)| *package).collect();
                format!("apt-get install {}", packages.into_iter().collect::<Vec<_>>().join(" "))
            }
            Error::MissingLibraries { missing } => {
                let packages: Vec<_> = missing.iter().map(|(_, package)| *package).collect();
                format!("apt-get install {}, or leave the option away", packages.join(" "))
            }
            Error::BuildDoesNotRun { package: Some(package), .. } => format!("apt-get install {package}"),
            Error::BuildFailed { log, .. } => format!("all that it said is in {}", log.display()),
            Error::OtherDataMajor { has, wanted, .. } => format!(
                "keep to {has}.x here, or build {wanted} beside it with --no-switch; data moves to another major \
                 version by dump and restore into a new instance"
            ),
            Error::WouldOverwrite { instance, .. } => format!(
                "to lose it on purpose, add --confirm {instance}: it is overwritten; --plan full in place of --plan \
                 delta moves the old cluster aside and keeps it"
            ),
            Error::NeedsConfirmation { instance, .. } => {
                format!(
                    "to lose it on purpose, add --confirm {instance}; the old cluster is moved aside and kept"
                )
            }
            Error::BackupTool { program, wanted, .. } => {
                // Debian has pg_amcheck among the server's programs.
                let package = if *program == "pg_amcheck" { "postgresql-" } else { "postgresql-client-" };
                format!("apt-get install {package}{wanted}, or pgmahout build-version {wanted} --no-switch")
            }
            Error::ReplacesDatabase { instance, .. } => {
                format!("to replace it on purpose, add --confirm {instance}")
            }
            Error::TwoPrimaries { instance, .. } => format!(
                "stop it first: --fence with its blurb on stdin; or promote all the same with --confirm {instance}"
            ),
            Error::Superseded { instance, .. } => format!(
                "follow the other one by pgmahout enslave; or go back to this one, and lose what the other one has \
                 committed since: --confirm {instance}"
            ),
            Error::SourceSuperseded { source, name, .. } => format!(
                "follow {0}; or, if {0} has gone its own way for good: pgmahout forget {0} on {source}",
                printable(name)
            ),
            Error::FencedForAnother { instance, successor, fence } => {
                let successor = printable(successor);
                format!(
                    "if {successor} is the primary, follow it; if it is not, and will not be, remove {} on \
                     {instance} and run this again",
                    fence.display()
                )
            }
            Error::HostKeyChanged { host, offered, file } => {
                let (name, port) = host.rsplit_once(':').unwrap_or((host, "22"));
                let name = name.trim_start_matches('[').trim_end_matches(']');
                let name = if port == "22" { name.to_owned() } else { format!("[{name}]:{port}") };
                format!(
                    "if that is expected: ssh-keygen -f '{}' -R '{name}', or --host-key {offered} for this once",
                    file.display()
                )
            }
            Error::Relayed { host, hint, .. } => {
                let hint = hint.as_deref().map(printable).unwrap_or_default();
                if hint.is_empty() { format!("so says the agent on {host}") } else { hint }
            }
            Error::NoPassword { own: true, .. } => "put it into ~/password (or password_file, or PGPASSWORD) of this \
                instance, or let it have a new one: pgmahout credentials --rotate"
                .to_owned(),
            Error::NoPassword { role, .. } => format!(
                "the server keeps no passwords, only what they are checked with; for a new one: pgmahout \
                 credentials --rotate --role {role}"
            ),
            Error::WalLevel { wanted, .. } => format!("set wal_level = {wanted} there and restart it"),
            Error::NotAClient { kind, .. } => match kind.as_str() {
                "autovacuum worker" => "--force ends it; the table is vacuumed later then".into(),
                "walsender" => "end it at its other end: the standby, or the program that takes a copy".into(),
                "parallel worker" => "it works for a session: `pgmahout ps` shows which".into(),
                _ => "the server needs it; `pgmahout ps --all` shows the client sessions".into(),
            },
            Error::DoesNotStop { ended: true, .. } => {
                "it may wait for a disk or a network file system; look again: pgmahout ps --all".into()
            }
            Error::DoesNotStop { .. } => "look again with `pgmahout ps`; --force ends the session".into(),
            Error::StatementsNotCounted { preloaded, installed, .. } => {
                // Quoted one by one: 'a, b' would be the name of one library, and the server would not start.
                let names: Vec<_> =
                    preloaded.iter().map(String::as_str).chain(["pg_stat_statements"]).collect();
                let first = match installed {
                    true => "",
                    false => "install PostgreSQL's contrib modules (a build of build-version has them), then ",
                };
                format!(
                    "{first}ALTER SYSTEM SET shared_preload_libraries = '{}' and restart the server",
                    names.join("', '")
                )
            }
            Error::LibraryMissing { library, source, .. } => format!(
                "install it here, take the build of {source} (build-version --from-blurb --rebuild), or take \
                 {library} out of its shared_preload_libraries and restart it"
            ),
            _ => hint.to_owned(),
        };
        Parts { exit, text, hint: (!hint.is_empty()).then_some(hint) }
    }

    /// The exit code of the process that ends with this error.
    pub fn exit(&self) -> Exit {
        self.parts().exit
    }

    /// What gets the person out, when there is something better than reading the text again.
    pub fn hint(&self) -> Option<String> {
        self.parts().hint.map(|hint| printable(&hint))
    }
}

/// What helps against the failures of files that an operator can do something about.
fn file_hint(source: &std::io::Error) -> &'static str {
    match source.kind() {
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
            "make room there, then run the same command again"
        }
        std::io::ErrorKind::PermissionDenied => "let this account write there, or run as the one that may",
        _ => "",
    }
}

/// The exit code of somebody else, as one of ours.
fn exit_of(code: u8) -> Exit {
    [Exit::Usage, Exit::Refused, Exit::Unreachable, Exit::Interrupted]
        .into_iter()
        .find(|known| *known as u8 == code)
        .unwrap_or(Exit::Failed)
}

const ROLLBACK_HINT: &str = "mend that, then --rollback completes the way back; --status shows what is left";

/// What the way back of a migration could not undo.
fn left_text(app: &str, left: &[String], up: bool) -> String {
    let state = if up { "is up on its old database" } else { "stays down" };
    format!("{app} {state}; not undone: {}", left.join("; "))
}

/// What is known of a server that does not start (`service::log_tail`), as part of a text.
fn in_log(log: &Option<String>) -> String {
    log.as_ref().map_or(String::new(), |log| format!("\n{}", printable(log)))
}

fn megabytes(bytes: u64) -> String {
    format!("{} MB", bytes.div_ceil(1_000_000))
}

/// What a peer or a file said, without anything that moves a terminal. Doing it again changes nothing.
pub fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if moves_a_terminal(c) && c != '\n' && c != '\t' {
            out.extend(c.escape_default())
        } else {
            out.push(c)
        }
    }
    out
}

/// Control characters, and those that turn the direction of writing: with them a name looks like another one.
pub fn moves_a_terminal(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Hosts, servers, files and stores have had their say in it.
        f.write_str(&printable(&self.parts().text))
    }
}

impl std::error::Error for Error {}
