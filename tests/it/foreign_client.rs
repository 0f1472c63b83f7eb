//! An agent and a resource server in Python (`tests/foreign`), written from `docs/wire.md` and `proto/` alone, against a served
//! broker; and the test vectors through their functions. `.ci/stub-tools` installs what they need.

use std::path::Path;
use std::process::Stdio;

use dipylon_sdk::clock::Clock;
use dipylon_sdk::model::AccessRequestId;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

use crate::end_to_end::approve;
use crate::generated_stubs;
use crate::support::served_broker::ServedBroker;
use crate::support::wait::in_time;
use crate::support::{CASES, DOMAIN, IDP};

/// A running Python program and the lines of its stdout.
struct Program {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Program {
    fn start(script: &str, arguments: &[&str]) -> Option<Self> {
        let tools = generated_stubs::tools()?;
        let script = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/foreign")
            .join(script);
        let mut child = Command::new(tools.join("venv/bin/python"))
            .args(["-B".as_ref(), script.as_os_str()])
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("starts");
        let lines = BufReader::new(child.stdout.take().expect("stdout")).lines();
        Some(Self { child, lines })
    }

    async fn line(&mut self) -> Option<String> {
        in_time("a line", self.lines.next_line())
            .await
            .expect("read")
    }

    async fn step(&mut self) -> Value {
        let line = self.line().await.expect("a step");
        serde_json::from_str(&line).unwrap_or_else(|_| panic!("not JSON: {line}"))
    }

    /// The steps from here to the end, and the exit code.
    async fn finish(mut self) -> (Vec<Value>, i32) {
        let mut steps = Vec::new();
        while let Some(line) = self.line().await {
            steps.push(serde_json::from_str(&line).expect("JSON"));
        }
        let status = in_time("its end", self.child.wait()).await.expect("ended");
        (steps, status.code().expect("a code"))
    }
}

/// The names of the steps, with the HTTP status of those that have one.
fn outline(steps: &[Value]) -> Vec<Value> {
    let of = |step: &Value| match step.get("status") {
        Some(status) => json!([step["step"], status]),
        None => step["step"].clone(),
    };
    steps.iter().map(of).collect()
}

struct Site {
    broker: ServedBroker,
    dir: tempfile::TempDir,
}

impl Site {
    async fn start() -> Self {
        let broker = ServedBroker::start().await;
        let dir = tempfile::tempdir().expect("dir");
        let site = Self { broker, dir };
        let id = format!("spiffe://{DOMAIN}/agent/triage");
        let now = Clock::system().now();
        let evidence = site.broker.env.svid_for(&site.broker.url, &id, now, 3_600);
        site.write("evidence", evidence.expose_secret());
        site
    }

    fn write(&self, name: &str, text: &str) -> String {
        let path = self.dir.path().join(name);
        std::fs::write(&path, text).expect("written");
        path.to_str().expect("text").to_owned()
    }

    /// A resource server with the key of a validator, once it follows the feed; and its URL.
    async fn resource_server(&self, validator: &str, audience: &str) -> Option<(Program, String)> {
        let key = self.write(validator, &self.broker.env.pem_of(validator));
        let arguments = [
            "--broker",
            &self.broker.url,
            "--audience",
            audience,
            "--key",
            &key,
        ];
        let mut server = Program::start("resource_server.py", &arguments)?;
        let url = server.line().await.expect("its URL");
        Some((server, url))
    }

    fn agent(&self, request: &[&str]) -> Option<Program> {
        let evidence = self.dir.path().join("evidence");
        let evidence = evidence.to_str().expect("text");
        let broker = ["--broker", &self.broker.url, "--evidence", evidence];
        Program::start("agent.py", &[&broker, request].concat())
    }
}

fn read_case<'a>(case: &'a str, url: &'a str) -> [&'a str; 12] {
    [
        "--action",
        "case.read",
        "--target-type",
        "Case",
        "--target-id",
        case,
        "--audience",
        CASES,
        "--method",
        "GET",
        "--url",
        url,
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn agent_and_resource_server_in_python_work_together() {
    let site = Site::start().await;
    let Some((_server, cases)) = site.resource_server("cases", CASES).await else {
        return;
    };
    let url = format!("{cases}/cases/INC-8841");
    let agent = site.agent(&read_case("INC-8841", &url)).expect("starts");
    let (steps, code) = agent.finish().await;
    assert_eq!(
        outline(&steps),
        [
            json!("opened"),
            json!("token"),
            json!(["used", 200]),
            json!(["replayed", 401]),
            json!("completed"),
            json!(["after", 401]),
        ],
        "{steps:#?}"
    );
    assert_eq!((code, &steps[4]["tokens_revoked"]), (0, &json!(1)));

    // A token for one case opens no other.
    let other = format!("{cases}/cases/INC-9");
    let agent = site.agent(&read_case("INC-8841", &other)).expect("starts");
    let (steps, _) = agent.finish().await;
    assert_eq!(outline(&steps)[2], json!(["used", 403]), "{steps:#?}");

    // A refusal says why, and where an operator finds more.
    let agent = site.agent(&read_case("INC-0", &url)).expect("starts");
    let (steps, code) = agent.finish().await;
    let refused = steps.last().expect("a step");
    assert_eq!((code, &refused["reason"]), (1, &json!("UNKNOWN_TARGET")));
    let correlation = refused["correlation"].as_str().expect("an id");
    assert!(correlation.starts_with("cor_"), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn agent_in_python_waits_for_approval_and_spends_one_use() {
    let site = Site::start().await;
    let Some((_server, idp)) = site.resource_server("idp", IDP).await else {
        return;
    };
    let url = format!("{idp}/accounts/ann/disable");
    let request = [
        "--action",
        "account.disable",
        "--target-type",
        "Account",
        "--target-id",
        "ann",
        "--parameters",
        "{\"end_sessions\": true}",
        "--audience",
        IDP,
        "--method",
        "POST",
        "--url",
        &url,
    ];
    let mut agent = site.agent(&request).expect("starts");
    assert_eq!(agent.step().await["step"], "opened");
    let pending = agent.step().await;
    assert_eq!(pending["step"], "pending", "{pending}");
    let id = pending["request"].as_str().expect("an id");
    let id = AccessRequestId::parse(id).expect("an id");
    approve(&site.broker.approver("maria"), id, "one-security").await;
    let (steps, code) = agent.finish().await;
    assert_eq!(
        outline(&steps)[..3],
        [
            json!("token"),
            json!(["used", 200]),
            json!(["replayed", 401])
        ],
        "{steps:#?}"
    );
    assert_eq!((code, &steps[0]["uses"]), (0, &json!(1)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vectors_agree_with_an_implementation_in_python() {
    let Some(program) = Program::start("check_vectors.py", &[]) else {
        return;
    };
    let (files, code) = program.finish().await;
    assert_eq!(code, 0, "{files:#?}");
    let agreed = |file: &Value| file["agreed"].as_u64().unwrap_or(0);
    assert!(
        files.len() >= 6 && files.iter().all(|file| agreed(file) > 0),
        "{files:#?}"
    );
}
