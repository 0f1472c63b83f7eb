//! The walkthrough of `docs/operations.md`: its commands are run as they stand there, its configuration is used as it stands
//! there; addresses alone are replaced. A production broker with TLS, its first operator, an agent, a validator, an approved
//! action by `exec`, a freeze, the metrics.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use axum::routing::any;
use dipylon_sdk::client::{ConnectOptions, Identity};
use dipylon_sdk::jose::SigningKey;
use dipylon_sdk::model::Audience;
use dipylon_sdk::validator::{PresentedToken, RequiredAction, Validator, ValidatorConfig};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::net::TcpListener;
use tokio::process::{Child, Command};

use super::admission::get;
use super::exec::setup::{CommandOutput, SH};
use crate::support::certificate_authority::{Authority, replace_file};
use crate::support::{CASES, read_case};

/// The setup section: each command on one line, without its comment, and the configuration.
struct SetupSection {
    commands: Vec<String>,
    config: String,
    /// Commands that were run.
    used: RefCell<BTreeSet<usize>>,
}

impl SetupSection {
    fn read() -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/operations.md");
        let page = std::fs::read_to_string(path).expect("the page");
        let section = page.split("\n## Setup\n").nth(1).expect("a section");
        let blocks = section.split("\n```").skip(1);
        let mut blocks = blocks.map(|block| block.split_once('\n'));
        let mut block = |language: &str| {
            let of = |block: &(&str, &str)| block.0 == language && !block.1.is_empty();
            let (_, text) = blocks.by_ref().flatten().find(of).expect("a block");
            text.to_owned()
        };
        let commands = block("").replace("\\\n", " ");
        let commands = commands.lines().filter_map(|line| {
            let command = line.split("  #").next().unwrap_or_default().trim();
            (!command.is_empty()).then(|| command.to_owned())
        });
        Self {
            commands: commands.collect(),
            config: block("toml"),
            used: RefCell::default(),
        }
    }

    /// The command that begins so.
    fn command(&self, begins: &str) -> String {
        let place = |command: &String| command.starts_with(begins);
        let at = self.commands.iter().position(place);
        let at = at.unwrap_or_else(|| panic!("no command begins `{begins}`: {:#?}", self.commands));
        self.used.borrow_mut().insert(at);
        self.commands[at].clone()
    }

    fn unused(&self) -> Vec<&String> {
        let used = self.used.borrow();
        let commands = self.commands.iter().enumerate();
        let left = commands.filter(|(n, _)| !used.contains(n));
        left.map(|(_, command)| command).collect()
    }
}

struct Walkthrough {
    root: tempfile::TempDir,
    section: SetupSection,
    port: u16,
    admin: String,
}

impl Walkthrough {
    async fn new() -> Self {
        let mut ports = Vec::new();
        let mut held = Vec::new();
        for _ in 0..2 {
            let free = TcpListener::bind("127.0.0.1:0").await.expect("a port");
            ports.push(free.local_addr().expect("address").port());
            held.push(free);
        }
        let walk = Self {
            root: tempfile::tempdir().expect("dir"),
            section: SetupSection::read(),
            port: ports[0],
            admin: format!("127.0.0.1:{}", ports[1]),
        };
        // `dipylon` and `curl` as the page writes them.
        let program = |name: &str, text: String| {
            walk.write(&format!("bin/{name}"), &text);
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
            let path = walk.path(&format!("bin/{name}"));
            std::fs::set_permissions(path, mode).expect("mode");
        };
        let dipylon = env!("CARGO_BIN_EXE_dipylon");
        program("dipylon", format!("#!/bin/sh\nexec {dipylon} \"$@\"\n"));
        let get = "ask GET \"/${2#\"$DIPYLON_PROXY_URL\"/}\"";
        program("curl", format!("#!/bin/bash\n{SH}\n{get}\n"));
        walk
    }

    fn url(&self) -> String {
        format!("https://localhost:{}", self.port)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().expect("parent")).expect("dir");
        std::fs::write(path, text).expect("written");
    }

    /// The page's text with this test's addresses.
    fn with_addresses(&self, text: &str) -> String {
        let examples = format!("{}/examples/", env!("CARGO_MANIFEST_DIR"));
        text.replace("localhost:7700", &format!("localhost:{}", self.port))
            .replace("127.0.0.1:7700", &format!("127.0.0.1:{}", self.port))
            .replace("127.0.0.1:9100", &self.admin)
            .replace(" examples/", &format!(" {examples}"))
    }

    /// A shell that runs one line, where the page's shell would.
    fn shell(&self, line: &str) -> Command {
        let mut command = Command::new("bash");
        let path = std::env::var("PATH").unwrap_or_default();
        let environment = self.with_addresses(&self.section.command("export "));
        command
            .args([
                "-c",
                &format!("{environment}\n{}", self.with_addresses(line)),
            ])
            .current_dir(self.root.path())
            .env_remove("XDG_RUNTIME_DIR")
            .env_remove("SPIFFE_ENDPOINT_SOCKET")
            .env("PATH", format!("{}:{path}", self.path("bin").display()))
            .env("HOME", self.root.path())
            .env("XDG_STATE_HOME", self.path("state"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    async fn run(&self, line: &str) -> CommandOutput {
        CommandOutput::new(self.shell(line).output().await.expect("runs"))
    }

    async fn done(&self, line: &str) -> String {
        let output = self.run(line).await;
        assert_eq!(output.code, 0, "{line}: {} {}", output.out, output.err);
        output.out
    }

    /// Runs the page's command that begins so.
    async fn page(&self, begins: &str) -> String {
        self.done(&self.section.command(begins)).await
    }

    /// Starts the broker and waits until it is ready.
    async fn serve(&self) -> (Child, PathBuf) {
        let output = self.path("output.txt");
        let line = self.section.command("dipylon serve ");
        let child = self
            .shell(&format!("exec {line} --ready-file ready.json"))
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(&output).expect("file"))
            .spawn()
            .expect("starts");
        for _ in 0..1_500 {
            if self.path("ready.json").exists() {
                return (child, output);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("{}", std::fs::read_to_string(output).unwrap_or_default());
    }
}

/// A resource server that validates every request.
struct CaseSystem {
    url: String,
    validator: Validator,
}

impl CaseSystem {
    async fn start(walk: &Walkthrough) -> Arc<Self> {
        let pem = std::fs::read_to_string(walk.path("cases.pem")).expect("key");
        let key = Arc::new(SigningKey::from_pem(&pem).expect("key"));
        let reach = ConnectOptions {
            ca: Some(walk.path("ca.pem")),
            ..ConnectOptions::default()
        };
        let audience = Audience::parse(CASES).expect("audience");
        let config = ValidatorConfig {
            connect: reach,
            ..ValidatorConfig::new(&walk.url(), &walk.url(), audience, Identity::Key(key))
        };
        let validator = Validator::connect(config).await.expect("connects");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let cases = Arc::new(Self {
            url: format!("http://{}", listener.local_addr().expect("address")),
            validator,
        });
        let router = Router::new()
            .fallback(any(Self::serve))
            .with_state(cases.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        cases
    }

    async fn serve(State(at): State<Arc<Self>>, request: Request) -> Response {
        let (head, _) = request.into_parts();
        let one = |name: &str| {
            let value = head.headers.get(name).and_then(|v| v.to_str().ok());
            value.unwrap_or_default().to_owned()
        };
        let (authorization, proof) = (one("authorization"), one("dpop"));
        let url = format!("{}{}", at.url, head.uri.path());
        let presented = PresentedToken {
            token: authorization.strip_prefix("DPoP ").unwrap_or_default(),
            dpop: Some(&proof),
            method: head.method.as_str(),
            url: &url,
            openings: &Default::default(),
        };
        let action = read_case();
        let require = RequiredAction {
            action: action.name,
            target: action.target,
            parameters: Some(action.parameters),
        };
        match at.validator.check(&presented, &require).await {
            Ok(_) => "the case".into_response(),
            Err(error) => {
                let status = StatusCode::from_u16(error.status()).expect("a status");
                (status, error.to_string()).into_response()
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn setup_section_works_as_written() {
    let walk = Walkthrough::new().await;
    let authority = Authority::new();
    let (certificate, key) = authority.certify();
    walk.write("ca.pem", &authority.pem);
    walk.write("tls.crt", &certificate);
    replace_file(&walk.path("tls.key"), &key, 0o600);

    // The policy, and keys for the operator, the case system and two approvers.
    walk.page("cp -r examples/soc policy").await;
    for who in ["olga", "cases", "maria", "lee"] {
        walk.page(&format!("dipylon key new --of {who} ")).await;
    }
    let checked = walk.page("dipylon policy check").await;
    // Every agent has enough approvers: two-security takes passkeys, for which people are invited later.
    assert!(
        !checked.contains("reporter (") && !checked.contains("triage ("),
        "{checked}"
    );
    walk.page("dipylon dev trust-domain").await;
    walk.section.command("$EDITOR dipylon.toml");
    walk.write("dipylon.toml", &walk.with_addresses(&walk.section.config));
    walk.page("dipylon config check").await;

    // The broker starts without policy and denies everything; the printed code admits its first operator.
    let (mut broker, output) = walk.serve().await;
    let printed = std::fs::read_to_string(output).expect("output");
    let code = printed.split("one-time code ").nth(1).expect("printed");
    let code = code.split_whitespace().next().expect("a code");
    let first = format!("{} {code}", walk.section.command("dipylon policy apply"));
    walk.run("dipylon policy apply policy --key olga.pem")
        .await
        .exit_code(20);
    assert!(walk.done(&first).await.contains("in force"));
    walk.run(&first).await.exit_code(20);

    // An agent does one action, and its token ends with the command.
    let cases = CaseSystem::start(&walk).await;
    walk.page("dipylon dev svid").await;
    let reading = walk
        .section
        .command("dipylon exec --evidence svid --action case.read");
    let reading = reading.replace("http://127.0.0.1:8080", &cases.url);
    walk.run(&reading)
        .await
        .exit_code(0)
        .stdout_contains("200 OK")
        .stdout_contains("the case")
        .stderr_contains("verified")
        .stderr_contains("done");
    // An action that no rule allows runs nothing.
    let closing = walk.run(&reading.replace("case.read", "case.close")).await;
    assert!(
        closing.code != 0 && closing.out.is_empty(),
        "{}",
        closing.err
    );

    // An action that needs an approver waits for one.
    walk.write("contain.sh", "#!/bin/sh\necho contained\n");
    let disabling = walk
        .section
        .command("dipylon exec --evidence svid --action account.disable");
    let disabling = disabling
        .replace("http://127.0.0.1:8080", &cases.url)
        .replace("./contain.sh", "sh ./contain.sh");
    let mut waiting = walk.shell(&disabling).spawn().expect("starts");
    let mut said = BufReader::new(waiting.stderr.take().expect("piped")).lines();
    let mut request = None;
    while let Some(line) = said.next_line().await.expect("read") {
        request = line
            .split_whitespace()
            .find(|word| word.starts_with("areq_"))
            .map(str::to_owned);
        if request.is_some() {
            break;
        }
    }
    let request = request.expect("the wrapper names its access request");
    assert!(
        walk.page("dipylon inbox --key maria.pem")
            .await
            .contains(&request)
    );
    // There is no terminal to confirm at.
    let approve = walk
        .section
        .command("dipylon approve")
        .replace("areq_…", &request);
    walk.done(&format!("{approve} --yes")).await;
    let ran = waiting.wait_with_output().await.expect("ends");
    assert!(
        ran.status.success() && ran.stdout == b"contained\n",
        "{ran:?}"
    );

    let invited = walk.page("dipylon approver invite maria").await;
    assert!(invited.contains("/console/enrol"), "{invited}");
    let listed = walk.done("dipylon task list --ended --key olga.pem").await;
    assert!(
        listed.contains("triage") && listed.contains("completed"),
        "{listed}"
    );

    // A freeze: the agent gets no more tokens, and the reason is visible.
    assert!(walk.page("dipylon agent list").await.contains("in service"));
    let frozen = walk.page("dipylon freeze agent/triage").await;
    assert!(frozen.contains("is frozen by entry"), "{frozen}");
    let refused = walk.run(&reading).await;
    assert!(
        refused.code != 0 && refused.out.is_empty(),
        "{}",
        refused.err
    );
    assert!(
        walk.page("dipylon agent list")
            .await
            .contains("frozen (agent/triage)")
    );
    assert!(
        walk.done("dipylon freeze --key olga.pem")
            .await
            .contains("INC-9")
    );
    walk.done("dipylon unfreeze agent/triage --key olga.pem")
        .await;
    walk.run(&reading).await.exit_code(0);

    // Metrics and doctor.
    walk.section
        .command("curl -s http://127.0.0.1:9100/metrics");
    let (code, metrics) = get(&walk.admin, "/metrics").await;
    assert_eq!(code, 200, "{metrics}");
    for line in [
        "dipylon_decisions_total{outcome=\"approved\"",
        "dipylon_tasks_open 0",
        "dipylon_policy_info{",
    ] {
        assert!(metrics.contains(line), "{line}: {metrics}");
    }
    let doctor = walk.run(&walk.section.command("dipylon doctor")).await;
    assert!(
        doctor.out.contains("[ok]") && !doctor.out.contains("[fail]"),
        "{}",
        doctor.out
    );
    assert!(
        walk.section.unused().is_empty(),
        "not run: {:#?}",
        walk.section.unused()
    );

    // It stops on SIGTERM, and its journal can be verified offline.
    let pid =
        rustix::process::Pid::from_raw(i32::try_from(broker.id().expect("runs")).expect("pid"));
    rustix::process::kill_process(pid.expect("pid"), rustix::process::Signal::TERM)
        .expect("output");
    let ended = tokio::time::timeout(Duration::from_secs(60), broker.wait()).await;
    assert!(ended.expect("in time").expect("ends").success());
    assert!(
        walk.done("dipylon audit verify --data-dir data")
            .await
            .contains("verified: ")
    );
}
