//! The demo's scenario: a security team's agent contains an incident, and invalid requests are refused.

mod high_risk;
mod recommendation;

use std::cell::Cell;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::child::{Child, ChildReply};
use super::resource::{CASES, IDP};
use super::step_log::StepLog;
use super::{http, person, workload};
use crate::audit::Checkpoint;
use crate::cli::dev::DevConfig;
use crate::cli::error::{CliError, io_error};
use crate::cli::{Output, files, policy_dir, shell};
use crate::clock::Clock;
use crate::model::SpiffeId;

/// Lifetime of the demo's evidence in seconds: longer than the demo takes.
const EVIDENCE_S: u32 = 300;
/// Time within which a resource server must reject tokens of an ended task, in milliseconds.
const REJECTED_WITHIN_MS: u32 = 1_000;
/// How long the agent waits for approvers, in seconds.
const WAIT_S: u32 = 20;
const CASE: &str = "Case::INC-8841";

/// The processes of the scenario.
struct Scenario {
    dir: PathBuf,
    dev_config: DevConfig,
    url: String,
    server: String,
    broker: Child,
    resource: Child,
    agent: Child,
    other: Child,
    assistant: Child,
    responder: Child,
    dana: Child,
    maria: Child,
    lee: Child,
    olga: Child,
}

/// Runs the scenario; true if every step had the expected outcome.
pub(super) async fn run(
    output: &Output,
    dir: &Path,
    keep: bool,
    all_passed: &Cell<bool>,
) -> Result<bool, CliError> {
    let mut log = StepLog::new(output);
    log.note(
        "Dipylon demo: one incident. Every step below is a call between processes, over sockets.\n\n",
    );
    let mut fixture = Scenario::assemble(dir).await?;
    let recorded = fixture
        .broker
        .ready
        .get("checkpoint")
        .and_then(Value::as_str)
        .unwrap_or_default()
        .to_owned();
    fixture.print_setup(&log, &recorded);
    let jti = fixture.step_read_and_disable(&mut log).await?;
    fixture.step_isolate(&mut log).await?;
    fixture.step_recommend(&mut log).await?;
    fixture.step_policy_change(&mut log, &jti).await?;
    fixture.step_broker_crash(&mut log).await?;
    fixture.step_task_end(&mut log).await?;
    fixture.step_audit(&mut log, &recorded).await?;
    let passed = log.end();
    all_passed.set(passed);
    if keep && passed {
        fixture.keep_running(&log).await?;
    }
    fixture.shut_down().await?;
    Ok(passed)
}

impl Scenario {
    async fn assemble(dir: &Path) -> Result<Self, CliError> {
        let at = |name: &str| dir.join(name);
        let broker = start_broker(dir).await?;
        let dev_config = DevConfig::read(&at("broker"))?;
        let url = dev_config.config().settings.external_url.to_string();
        let resource = start_resource(dir, &dev_config, &url).await?;
        let server = resource
            .ready
            .get("url")
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned();
        let workload = async |name: &'static str, id: &str| {
            // As a SPIFFE agent does for a workload it has attested.
            let file = at(&format!("{name}.svid"));
            let id = SpiffeId::parse(id)?;
            files::write_private(
                &file,
                dev_config
                    .issue_svid(&id, EVIDENCE_S, Clock::system().now())?
                    .expose_secret(),
            )?;
            let file = file.to_string_lossy();
            Child::start(
                name,
                &["demo-agent", "--evidence", &file, "--broker", &url],
                &at(&format!("{name}.log")),
            )
            .await
        };
        let agent = workload("triage", "spiffe://soc.example/agent/triage").await?;
        let other = workload("copycat", "spiffe://soc.example/agent/copycat").await?;
        let assistant = workload("assistant", "spiffe://soc.example/agent/assistant").await?;
        let responder = workload("responder", "spiffe://soc.example/agent/responder").await?;
        let person = async |args: &str, name: &'static str| {
            let key = dev_config.key_file(name);
            let realm = dev_config.config().settings.realm.to_string();
            let args = [
                args,
                "--own-key",
                &key.to_string_lossy(),
                "--broker",
                &url,
                "--realm",
                &realm,
            ];
            Child::start(name, &args, &at(&format!("{name}.log"))).await
        };
        let dana = person("demo-approver", "dana").await?;
        let maria = person("demo-approver", "maria").await?;
        let lee = person("demo-approver", "lee").await?;
        let olga = person("demo-operator", "olga").await?;
        Ok(Self {
            dir: dir.to_owned(),
            url,
            server,
            broker,
            resource,
            agent,
            other,
            assistant,
            responder,
            dana,
            maria,
            lee,
            olga,
            dev_config,
        })
    }

    fn print_setup(&self, log: &StepLog, recorded: &str) {
        log.note(&format!(
            "  broker           pid {:<7} {}\n  resource server  pid {:<7} {}\n  agent            pid {:<7} spiffe://soc.example/agent/triage\n  \
             another workload pid {:<7} spiffe://soc.example/agent/copycat\n  assistant        pid {:<7} advisory: it recommends\n  \
             responder        pid {:<7} executes what people approve\n  dana             pid {:<7} approver, and the agent's owner\n  \
             maria            pid {:<7} approver\n  lee              pid {:<7} approver\n  olga             pid {:<7} operator\n  checkpoint recorded outside the broker: {recorded}\n\n",
            self.broker.pid(),
            self.url,
            self.resource.pid(),
            self.server,
            self.agent.pid(),
            self.other.pid(),
            self.assistant.pid(),
            self.responder.pid(),
            self.dana.pid(),
            self.maria.pid(),
            self.lee.pid(),
            self.olga.pid(),
        ));
    }

    /// A read is allowed by policy; a step-up is requested, approved, issued, and used once. Returns the `jti` of the used token.
    async fn step_read_and_disable(&mut self, log: &mut StepLog) -> Result<String, CliError> {
        let opened = self
            .agent
            .call(&workload::AgentInstruction::Open {
                purpose: "contain INC-8841".to_owned(),
            })
            .await?;
        log.step(
            "the agent authenticates and opens a task",
            "verified",
            &opened.outcome(),
            &opened.text("subject"),
        );
        let read = self
            .agent
            .call(&request_token(
                "case",
                "case.read",
                CASE,
                &[],
                CASES,
                "read",
                0,
            ))
            .await?;
        log.step(
            "it requests a token to read a case: allowed by policy",
            "token",
            &read.outcome(),
            &details(&read),
        );
        let used = self.read_case().await?;
        log.step(
            "the case system accepts the token",
            "200",
            &used.text("status"),
            "",
        );
        log.step("the accounts before", ALL_ON, &self.accounts().await?, "");

        let pending = self.agent.call(&disable("ann", "ann-1", 0)).await?;
        let request = pending.text("access_request");
        log.step(
            "it requests a token to disable ann: needs approval",
            "pending",
            &pending.outcome(),
            &details(&pending),
        );
        let vote = person::PersonInstruction::Approve {
            access_request: request.clone(),
        };
        let dana = self.dana.call(&vote).await?;
        log.step(
            "dana approves, but owns the agent: not eligible",
            "NOT_ELIGIBLE",
            &dana.outcome(),
            &dana.message(),
        );
        let maria = self.maria.call(&vote).await?;
        log.step(
            "maria approves, and signs what her card showed",
            "approved",
            &maria.outcome(),
            "",
        );
        let issued = self.agent.call(&disable("ann", "ann-1", 0)).await?;
        log.step(
            "the agent repeats the request: a token for one use",
            "token",
            &issued.outcome(),
            &details(&issued),
        );
        let used = self.use_on("ann", "ann-1").await?;
        log.step(
            "the identity provider accepts the token",
            "200",
            &used.text("status"),
            "",
        );
        log.step(
            "the accounts after",
            "ann off, bob on, cara on",
            &self.accounts().await?,
            "",
        );
        let again = self.use_on("ann", "ann-1").await?;
        log.step(
            "the same token again: rejected",
            "401 token: its uses are spent",
            &rejection(&again),
            &again.text("challenge"),
        );
        Ok(issued.text("jti"))
    }

    /// The limits of an approval: another target, another workload, and rules that change before the token is issued.
    async fn step_policy_change(
        &mut self,
        log: &mut StepLog,
        used_jti: &str,
    ) -> Result<(), CliError> {
        let cara = self.agent.call(&disable("cara", "cara-1", 0)).await?;
        let request = cara.text("access_request");
        log.step(
            "it requests a token to disable cara: needs approval",
            "pending",
            &cara.outcome(),
            "",
        );
        let vote = person::PersonInstruction::Approve {
            access_request: request.clone(),
        };
        let maria = self.maria.call(&vote).await?;
        log.step(
            "maria approves the request for cara",
            "approved",
            &maria.outcome(),
            "",
        );
        let ann = self.agent.call(&disable("ann", "ann-2", 0)).await?;
        let is_new =
            !ann.text("access_request").is_empty() && ann.text("access_request") != request;
        let got = if is_new && ann.text("jti").is_empty() {
            "a new access request"
        } else {
            "covered by the approval"
        };
        log.step(
            "approved for cara, it requests ann: no token is issued",
            "a new access request",
            got,
            &format!("the approval for ann was used by {used_jti}"),
        );
        let other = self
            .other
            .call(&workload::AgentInstruction::Open {
                purpose: "contain INC-8841".to_owned(),
            })
            .await?;
        log.step(
            "another workload of the same trust domain: refused",
            "NOT_AUTHENTICATED",
            &other.outcome(),
            &other.message(),
        );

        let tight = self.write_tightened_policy()?;
        let applied = self
            .olga
            .call(&person::PersonInstruction::Apply { dir: tight })
            .await?;
        log.step(
            "olga tightens the rules after the approval",
            "in force",
            &applied.outcome(),
            &applied.message(),
        );
        let repeated = self.agent.call(&disable("cara", "cara-1", 0)).await?;
        log.step(
            "the agent repeats the approved request: current rules deny",
            "denied",
            &repeated.outcome(),
            &details(&repeated),
        );
        let applied = self
            .olga
            .call(&person::PersonInstruction::Apply {
                dir: self.dev_config.dir().join("policy"),
            })
            .await?;
        log.step(
            "olga restores the earlier rules",
            "in force",
            &applied.outcome(),
            &applied.message(),
        );
        let repeated = self.agent.call(&disable("cara", "cara-2", 0)).await?;
        let is_new = repeated.outcome() == "pending" && repeated.text("access_request") != request;
        let got = if is_new {
            "a new access request"
        } else {
            "the old approval"
        };
        log.step(
            "the old approval does not count again",
            "a new access request",
            got,
            "",
        );
        Ok(())
    }

    /// The broker is killed while the agent waits.
    async fn step_broker_crash(&mut self, log: &mut StepLog) -> Result<(), CliError> {
        let pending = self.agent.call(&disable("cara", "cara-2", 0)).await?;
        let request = pending.text("access_request");
        self.agent.send(&disable("cara", "cara-2", WAIT_S)).await?;
        // A round trip of another client: by its end the broker has received the agent's call.
        self.maria.call(&person::PersonInstruction::Inbox).await?;
        let old = self.broker.pid();
        let broker = start_broker_after_kill(&mut self.broker, &self.dir).await?;
        log.step(
            "the broker is killed and restarted while the agent waits",
            "new pid",
            if broker == old { "same pid" } else { "new pid" },
            &format!("pid {old} was killed, pid {broker} replayed the journal"),
        );
        let inbox = self.maria.call(&person::PersonInstruction::Inbox).await?;
        let is_waiting = inbox
            .value()
            .get("waiting")
            .and_then(Value::as_array)
            .is_some_and(|all| all.iter().any(|id| id.as_str() == Some(&request)));
        log.step(
            "the acknowledged access request is still waiting",
            "waiting",
            if is_waiting { "waiting" } else { "lost" },
            &request,
        );
        let vote = person::PersonInstruction::Approve {
            access_request: request,
        };
        let maria = self.maria.call(&vote).await?;
        log.step(
            "maria approves it",
            "approved",
            &maria.outcome(),
            &maria.message(),
        );
        let issued = self.agent.reply().await?;
        log.step(
            "the agent, still waiting, receives its token",
            "token",
            &issued.outcome(),
            &details(&issued),
        );
        let case = self.read_case().await?;
        log.step(
            "the token for the case is still accepted",
            "200",
            &case.text("status"),
            &case.text("body"),
        );
        let reused = self.use_on("ann", "ann-1").await?;
        log.step(
            "the token that the tightened rules revoked stays revoked",
            "401 token: revoked",
            &rejection(&reused),
            "",
        );
        let used = self.use_on("cara", "cara-2").await?;
        log.step(
            "the identity provider accepts the token",
            "200",
            &used.text("status"),
            &rejection_if_any(&used),
        );
        log.step(
            "the accounts after",
            "ann off, bob on, cara off",
            &self.accounts().await?,
            "",
        );
        Ok(())
    }

    /// The task completes: its tokens are rejected everywhere, also after restarts.
    async fn step_task_end(&mut self, log: &mut StepLog) -> Result<(), CliError> {
        let done = self
            .agent
            .call(&workload::AgentInstruction::Complete)
            .await?;
        let why = format!(
            "entry {} revoked {} active tokens",
            done.text("position"),
            done.text("tokens_revoked")
        );
        log.step("the task completes", "completed", &done.outcome(), &why);
        let until_rejected = workload::AgentInstruction::UseUntilRejected {
            token: "case".to_owned(),
            method: "GET".to_owned(),
            url: format!("{}/cases/INC-8841", self.server),
            within_ms: REJECTED_WITHIN_MS,
        };
        let rejected = self.agent.call(&until_rejected).await?;
        let within = rejected.number("after_ms") <= u64::from(REJECTED_WITHIN_MS);
        let got = if within {
            rejection(&rejected)
        } else {
            format!("late: {}", rejection(&rejected))
        };
        let why = format!(
            "after {} ms; the limit is {REJECTED_WITHIN_MS} ms",
            rejected.text("after_ms")
        );
        log.step(
            "the case system rejects the task's token within a second",
            "401 token: revoked",
            &got,
            &why,
        );

        start_broker_after_kill(&mut self.broker, &self.dir).await?;
        let fresh = start_resource(&self.dir, &self.dev_config, &self.url).await?;
        self.server = fresh
            .ready
            .get("url")
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned();
        std::mem::replace(&mut self.resource, fresh).end().await?;
        let still = self.read_case().await?;
        log.step(
            "broker and resource server restarted: still rejected",
            "401 token: revoked",
            &rejection(&still),
            "",
        );
        let repeated = self
            .agent
            .call(&request_token(
                "case",
                "case.read",
                CASE,
                &[],
                CASES,
                "after-end",
                0,
            ))
            .await?;
        log.step(
            "the ended task gets no more tokens",
            "TASK_ENDED",
            &repeated.outcome(),
            "",
        );
        Ok(())
    }

    /// The audit needs only the journal and a checkpoint recorded at the start.
    async fn step_audit(&mut self, log: &mut StepLog, recorded: &str) -> Result<(), CliError> {
        let report = self.audit(recorded).await?;
        let got = if report.get("valid") == Some(&json!(true)) {
            "verified"
        } else {
            "damaged"
        };
        let why = format!("{} entries", report.get("entries").unwrap_or(&Value::Null));
        log.step(
            "audit verify against the checkpoint recorded at the start",
            "verified",
            got,
            &why,
        );
        let size = Checkpoint::parse(recorded)?.size;
        let forged = Checkpoint {
            size,
            root: crate::model::Digest::sha256(b"another history"),
        };
        let report = self.audit(&forged.to_string()).await?;
        let got = if report.get("error").is_some() {
            "rejected"
        } else {
            "verified"
        };
        log.step(
            "audit verify against a forged checkpoint",
            "rejected",
            got,
            "",
        );
        Ok(())
    }

    async fn read_case(&mut self) -> Result<ChildReply, CliError> {
        let url = format!("{}/cases/INC-8841", self.server);
        self.agent
            .call(&workload::AgentInstruction::Use {
                token: "case".to_owned(),
                method: "GET".to_owned(),
                url,
                body: None,
            })
            .await
    }

    async fn use_on(&mut self, account: &str, token: &str) -> Result<ChildReply, CliError> {
        let url = format!("{}/accounts/{account}/disable", self.server);
        let body = Some(json!({ "end_sessions": true }));
        self.agent
            .call(&workload::AgentInstruction::Use {
                token: token.to_owned(),
                method: "POST".to_owned(),
                url,
                body,
            })
            .await
    }

    /// The resource server's accounts, such as `ann on, bob on, cara on`.
    async fn accounts(&self) -> Result<String, CliError> {
        let response = http::call("GET", &format!("{}/accounts", self.server), &[], None).await?;
        let accounts = response.body.as_object().cloned().unwrap_or_default();
        let account = |(name, enabled): (&String, &Value)| {
            format!(
                "{name} {}",
                if enabled == &json!(true) { "on" } else { "off" }
            )
        };
        Ok(accounts.iter().map(account).collect::<Vec<_>>().join(", "))
    }

    /// Writes the policy bundle with one more rule.
    fn write_tightened_policy(&self) -> Result<PathBuf, CliError> {
        let dir = self.dir.join("tightened");
        let mut files = policy_dir::read(&self.dev_config.dir().join("policy"))?;
        files.insert("rules/30-freeze.cedar".to_owned(), FREEZE.to_owned());
        // The tests of the example say what it decides without this rule.
        files.remove("tests.toml");
        policy_dir::write(
            &dir,
            files
                .iter()
                .map(|(path, text)| (path.as_str(), text.as_str())),
        )?;
        Ok(dir)
    }

    async fn audit(&self, against: &str) -> Result<Value, CliError> {
        let program = std::env::current_exe().map_err(io_error("own executable"))?;
        let mut command = tokio::process::Command::new(program);
        command
            .args([
                "audit",
                "verify",
                "--json",
                "--against",
                against,
                "--data-dir",
            ])
            .arg(self.dev_config.dir());
        let done = command
            .kill_on_drop(true)
            .output()
            .await
            .map_err(io_error("audit verify"))?;
        // The report, or the error.
        serde_json::from_slice(&done.stdout)
            .map_err(|e| CliError::failed(format!("audit verify: {e}")))
    }

    async fn keep_running(&self, log: &StepLog) -> Result<(), CliError> {
        let (program, dir) = (
            shell::program_name(),
            shell::shell_quote(&self.dev_config.dir().to_string_lossy()),
        );
        log.note(&format!(
            "\nThe broker keeps running until Ctrl-C. In another terminal:\n  export DIPYLON_DEV={dir}\n  \
             {program} task open --agent triage --purpose \"look around\"\n  {program} inbox --as maria\n  {program} audit verify --data-dir {dir}"
        ));
        // The caller listens for signals and then drops this future.
        std::future::pending().await
    }

    /// Ends the children in order; a child that does not end is killed.
    async fn shut_down(self) -> Result<(), CliError> {
        for child in [
            self.agent,
            self.other,
            self.assistant,
            self.responder,
            self.dana,
            self.maria,
            self.lee,
            self.olga,
            self.resource,
            self.broker,
        ] {
            child.end().await?;
        }
        Ok(())
    }
}

const ALL_ON: &str = "ann on, bob on, cara on";

/// The rule olga adds between the approval and the token request.
const FREEZE: &str = r#"@id("accounts-stay-unchanged")
@why("The identity provider is under maintenance.")
forbid (principal, action == Action::"account.disable", resource)
when { context.now < datetime("2100-01-01") };
"#;

async fn start_broker(dir: &Path) -> Result<Child, CliError> {
    let (dev_config, ready) = (dir.join("broker"), dir.join("ready.json"));
    let (dev_config, ready) = (dev_config.to_string_lossy(), ready.to_string_lossy());
    let args = [
        "serve",
        "--dev",
        "--json",
        "--stop-with-stdin",
        "--listen",
        "127.0.0.1:0",
        "--data-dir",
        &dev_config,
        "--ready-file",
        &ready,
    ];
    Child::start("broker", &args, &dir.join("broker.log")).await
}

/// Kills the broker with SIGKILL and starts another; returns the new process id.
async fn start_broker_after_kill(broker: &mut Child, dir: &Path) -> Result<u64, CliError> {
    broker.kill().await?;
    *broker = start_broker(dir).await?;
    Ok(broker.pid())
}

async fn start_resource(dir: &Path, dev_config: &DevConfig, url: &str) -> Result<Child, CliError> {
    let (idp, cases) = (dev_config.key_file("idp"), dev_config.key_file("cases"));
    let args = [
        "demo-resource",
        "--broker",
        url,
        "--idp-key",
        &idp.to_string_lossy(),
        "--cases-key",
        &cases.to_string_lossy(),
    ];
    Child::start("resource server", &args, &dir.join("resource.log")).await
}

fn request_token(
    name: &str,
    action: &str,
    target: &str,
    params: &[&str],
    audience: &str,
    idempotency_key: &str,
    wait_s: u32,
) -> workload::AgentInstruction {
    workload::AgentInstruction::RequestToken {
        name: name.to_owned(),
        action: action.to_owned(),
        target: target.to_owned(),
        params: params.iter().map(|p| (*p).to_owned()).collect(),
        audience: audience.to_owned(),
        reason: "phishing confirmed".to_owned(),
        wait_s,
        idempotency_key: idempotency_key.to_owned(),
        recommendation: None,
    }
}

/// Requests a token to disable an account; it is kept under the idempotency key.
fn disable(account: &str, idempotency_key: &str, wait_s: u32) -> workload::AgentInstruction {
    request_token(
        idempotency_key,
        "account.disable",
        &format!("Account::{account}"),
        &["end_sessions=true"],
        IDP,
        idempotency_key,
        wait_s,
    )
}

/// The error, reason, needs, rules and lifetime of a reply, where it has them.
fn details(reply: &ChildReply) -> String {
    let parts = [
        reply.message(),
        reply.text("reason"),
        reply.text("needs"),
        reply.text("rules"),
        reply.text("ttl"),
    ];
    parts
        .into_iter()
        .filter(|part| !part.is_empty())
        .collect::<Vec<_>>()
        .join("; ")
}

/// The resource server's rejection, such as `401 token: revoked`.
fn rejection(reply: &ChildReply) -> String {
    let error = reply
        .value()
        .pointer("/body/error")
        .and_then(Value::as_str)
        .unwrap_or_default();
    let text = format!("{} {error}", reply.text("status"));
    if reply.message().is_empty() {
        text.trim_end().to_owned()
    } else {
        reply.message()
    }
}

fn rejection_if_any(reply: &ChildReply) -> String {
    if reply.text("status") == "200" {
        String::new()
    } else {
        rejection(reply)
    }
}
