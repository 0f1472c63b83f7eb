//! The real program in a directory of its own, and a served broker.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use dipylon_sdk::clock::Clock;
use serde_json::Value;
use tokio::process::Command;

use crate::support::served_broker::ServedBroker;
use crate::support::{CASES, DOMAIN, IDP, TestEnvironment};

pub const READ: [&str; 6] = [
    "--action",
    "case.read",
    "--target",
    "Case::INC-8841",
    "--audience",
    CASES,
];
pub const DISABLE: [&str; 8] = [
    "--action",
    "account.disable",
    "--target",
    "Account::ann",
    "--param",
    "end_sessions=true",
    "--audience",
    IDP,
];

/// A served broker, and a home directory with the keys of its people and the evidence of its agents.
pub struct CliSetup {
    pub served: ServedBroker,
    pub home: tempfile::TempDir,
}

impl CliSetup {
    pub async fn start() -> Self {
        Self::start_in(TestEnvironment::new()).await
    }

    pub async fn start_in(env: TestEnvironment) -> Self {
        let setup = Self {
            served: ServedBroker::start_in(env).await,
            home: tempfile::tempdir().expect("dir"),
        };
        for person in setup.served.env.keys.keys() {
            let path = setup.path(&format!("{person}.pem"));
            std::fs::write(&path, setup.served.env.pem_of(person)).expect("key");
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("mode");
        }
        for agent in ["triage", "reporter"] {
            let id = format!("spiffe://{DOMAIN}/agent/{agent}");
            let now = Clock::system().now();
            let served = &setup.served;
            let svid = served.env.svid_for(&served.url, &id, now, 3_600);
            std::fs::write(setup.path(agent), svid.expose_secret()).expect("evidence");
        }
        setup
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    /// The program in the home directory, with a clean environment and the broker's URL.
    pub fn program(&self, args: &[&str]) -> Command {
        let mut program = program_in(self.home.path(), args);
        program.env("DIPYLON_URL", &self.served.url);
        program
    }

    pub async fn run(&self, args: &[&str]) -> Finished {
        finish(self.program(args)).await
    }

    /// The JSON value on stdout of a command with this exit code.
    pub async fn json(&self, args: &[&str], code: i32) -> Value {
        let finished = self.run(&[args, &["--json"]].concat()).await;
        finished.code(code).json()
    }

    /// Opens a task with the evidence of this agent; its id.
    pub async fn open_task(&self, agent: &str) -> String {
        let open = ["task", "open", "--purpose", "contain INC-8841"];
        let opened = self
            .json(&[&open[..], &["--evidence", agent]].concat(), 0)
            .await;
        text(&opened["task"])
    }
}

/// The program in a directory that is also its home, with a clean environment.
pub fn program_in(directory: &Path, args: &[&str]) -> Command {
    let mut program = Command::new(env!("CARGO_BIN_EXE_dipylon"));
    program
        .args(args)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("HOME", directory)
        .current_dir(directory)
        .stdin(Stdio::null())
        .kill_on_drop(true);
    program
}

pub async fn finish(mut program: Command) -> Finished {
    Finished(program.output().await.expect("runs"))
}

/// A program that has ended.
pub struct Finished(pub Output);

impl Finished {
    pub fn out(&self) -> String {
        String::from_utf8_lossy(&self.0.stdout).into_owned()
    }

    pub fn err(&self) -> String {
        String::from_utf8_lossy(&self.0.stderr).into_owned()
    }

    pub fn code(&self, code: i32) -> &Self {
        assert_eq!(
            self.0.status.code(),
            Some(code),
            "{} {}",
            self.out(),
            self.err()
        );
        self
    }

    /// Exactly one JSON value on stdout.
    pub fn json(&self) -> Value {
        let out = self.out();
        serde_json::from_str(&out).unwrap_or_else(|e| panic!("{e}: {out} {}", self.err()))
    }

    pub fn err_contains(&self, what: &str) -> &Self {
        assert!(self.err().contains(what), "{what}: {}", self.err());
        self
    }
}

pub fn text(value: &Value) -> String {
    value
        .as_str()
        .unwrap_or_else(|| panic!("text: {value}"))
        .to_owned()
}
