//! The story: a security team's agent contains an incident, and everything that should be refused is.

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

/// Seconds that the demo's evidence is good: longer than the demo takes.
const EVIDENCE_S: u32 = 300;
/// How soon a resource server must refuse what has ended, in milliseconds.
const REFUSED_WITHIN_MS: u32 = 1_000;
/// How long the agent waits for people, in seconds.
const WAIT_S: u32 = 20;
const CASE: &str = "Case::INC-8841";

/// Everyone who takes part.
struct Fixture {
    dir: PathBuf,
    dev_config: DevConfig,
    url: String,
    server: String,
    broker: Child,
    resource: Child,
    agent: Child,
    other: Child,
    dana: Child,
    maria: Child,
    olga: Child,
}

/// Tells the story; true when every step came out as it must.
pub(super) async fn run(
    output: &Output,
    dir: &Path,
    keep: bool,
    all_passed: &Cell<bool>,
) -> Result<bool, CliError> {
    let mut line = StepLog::new(output);
    line.note(
        "Dipylon: one incident. Every line below happened between processes, over sockets.\n\n",
    );
    let mut fixture = Fixture::assemble(dir).await?;
    let noted = fixture
        .broker
        .hello
        .get("checkpoint")
        .and_then(Value::as_str)
        .unwrap_or_default()
        .to_owned();
    fixture.print_setup(&line, &noted);
    let jti = fixture.step_read_and_disable(&mut line).await?;
    fixture.step_policy_change(&mut line, &jti).await?;
    fixture.step_broker_crash(&mut line).await?;
    fixture.step_task_end(&mut line).await?;
    fixture.step_audit(&mut line, &noted).await?;
    let whole = line.end();
    all_passed.set(whole);
    if keep && whole {
        fixture.keep_running(&line).await?;
    }
    fixture.shut_down().await?;
    Ok(whole)
}

impl Fixture {
    async fn assemble(dir: &Path) -> Result<Self, CliError> {
        let at = |name: &str| dir.join(name);
        let broker = start_broker(dir).await?;
        let dev_config = DevConfig::read(&at("broker"))?;
        let url = dev_config.config().settings.external_url.clone();
        let resource = start_resource(dir, &dev_config, &url).await?;
        let server = resource
            .hello
            .get("url")
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned();
        let workload = async |name: &'static str, id: &str| {
            // As a SPIFFE agent does for a workload that it has attested.
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
        let olga = person("demo-operator", "olga").await?;
        Ok(Self {
            dir: dir.to_owned(),
            url,
            server,
            broker,
            resource,
            agent,
            other,
            dana,
            maria,
            olga,
            dev_config,
        })
    }

    fn print_setup(&self, line: &StepLog, noted: &str) {
        line.note(&format!(
            "  broker           pid {:<7} {}\n  resource server  pid {:<7} {}\n  agent            pid {:<7} spiffe://soc.example/agent/triage\n  \
             another workload pid {:<7} spiffe://soc.example/agent/copycat\n  dana             pid {:<7} approver, and the agent's owner\n  \
             maria            pid {:<7} approver\n  olga             pid {:<7} operator\n  root noted outside the broker: {noted}\n\n",
            self.broker.pid(),
            self.url,
            self.resource.pid(),
            self.server,
            self.agent.pid(),
            self.other.pid(),
            self.dana.pid(),
            self.maria.pid(),
            self.olga.pid(),
        ));
    }

    /// A read is allowed at once; a step-up is asked, voted on, minted, and spent once. Gives the `jti` of what was spent.
    async fn step_read_and_disable(&mut self, line: &mut StepLog) -> Result<String, CliError> {
        let opened = self
            .agent
            .ask(&workload::AgentOrder::Open {
                purpose: "contain INC-8841".to_owned(),
            })
            .await?;
        line.step(
            "the agent shows what it is and opens a task",
            "verified",
            &opened.word(),
            &opened.text("subject"),
        );
        let read = self
            .agent
            .ask(&ask("case", "case.read", CASE, &[], CASES, "read", 0))
            .await?;
        line.step(
            "it asks to read a case: allowed at once",
            "token",
            &read.word(),
            &because(&read),
        );
        let used = self.read_case().await?;
        line.step(
            "the case system shows the case",
            "200",
            &used.text("status"),
            "",
        );
        line.step("before: the accounts", ALL_ON, &self.accounts().await?, "");

        let asked = self.agent.ask(&disable("ann", "ann-1", 0)).await?;
        let request = asked.text("access_request");
        line.step(
            "it asks to disable ann: people are asked",
            "pending",
            &asked.word(),
            &because(&asked),
        );
        let vote = person::PersonOrder::Approve {
            access_request: request.clone(),
        };
        let dana = self.dana.ask(&vote).await?;
        line.step(
            "dana says yes, but owns the agent: not counted",
            "NOT_ELIGIBLE",
            &dana.word(),
            &dana.message(),
        );
        let maria = self.maria.ask(&vote).await?;
        line.step(
            "maria says yes, to a statement built from what she saw",
            "approved",
            &maria.word(),
            "",
        );
        let minted = self.agent.ask(&disable("ann", "ann-1", 0)).await?;
        line.step(
            "the agent asks again: both gates, then a token for one use",
            "token",
            &minted.word(),
            &because(&minted),
        );
        let used = self.use_on("ann", "ann-1").await?;
        line.step(
            "the identity provider takes it",
            "200",
            &used.text("status"),
            "",
        );
        line.step(
            "after: the accounts",
            "ann off, bob on, cara on",
            &self.accounts().await?,
            "",
        );
        let again = self.use_on("ann", "ann-1").await?;
        line.step(
            "the same token again: refused",
            "401 token: its uses are spent",
            &refusal(&again),
            &again.text("challenge"),
        );
        Ok(minted.text("jti"))
    }

    /// What a yes does not cover, who is not the agent, and rules that change between yes and mint.
    async fn step_policy_change(
        &mut self,
        line: &mut StepLog,
        spent: &str,
    ) -> Result<(), CliError> {
        let cara = self.agent.ask(&disable("cara", "cara-1", 0)).await?;
        let request = cara.text("access_request");
        line.step(
            "it asks to disable cara: people are asked",
            "pending",
            &cara.word(),
            "",
        );
        let vote = person::PersonOrder::Approve {
            access_request: request.clone(),
        };
        let maria = self.maria.ask(&vote).await?;
        line.step("maria says yes to cara", "approved", &maria.word(), "");
        let ann = self.agent.ask(&disable("ann", "ann-2", 0)).await?;
        let own = !ann.text("access_request").is_empty() && ann.text("access_request") != request;
        let got = if own && ann.text("jti").is_empty() {
            "a new access request"
        } else {
            "covered"
        };
        line.step(
            "approved for cara, it asks for ann: nothing is minted",
            "a new access request",
            got,
            &format!("the yes for ann went into {spent}"),
        );
        let other = self
            .other
            .ask(&workload::AgentOrder::Open {
                purpose: "contain INC-8841".to_owned(),
            })
            .await?;
        line.step(
            "another workload of the same trust domain: gate 1",
            "NOT_AUTHENTICATED",
            &other.word(),
            &other.message(),
        );

        let tight = self.tightened()?;
        let applied = self
            .olga
            .ask(&person::PersonOrder::Apply { dir: tight })
            .await?;
        line.step(
            "olga tightens the rules after the yes",
            "in force",
            &applied.word(),
            &applied.message(),
        );
        let late = self.agent.ask(&disable("cara", "cara-1", 0)).await?;
        line.step(
            "the agent asks for what was approved: today's rules decide",
            "denied",
            &late.word(),
            &because(&late),
        );
        let applied = self
            .olga
            .ask(&person::PersonOrder::Apply {
                dir: self.dev_config.dir().join("policy"),
            })
            .await?;
        line.step(
            "olga puts the former rules back",
            "in force",
            &applied.word(),
            &applied.message(),
        );
        let anew = self.agent.ask(&disable("cara", "cara-2", 0)).await?;
        let fresh = anew.word() == "pending" && anew.text("access_request") != request;
        let got = if fresh {
            "a new access request"
        } else {
            "the old yes"
        };
        line.step(
            "the old yes does not come back with them",
            "a new access request",
            got,
            "",
        );
        Ok(())
    }

    /// The broker is killed while the agent waits.
    async fn step_broker_crash(&mut self, line: &mut StepLog) -> Result<(), CliError> {
        let asked = self.agent.ask(&disable("cara", "cara-2", 0)).await?;
        let request = asked.text("access_request");
        self.agent.tell(&disable("cara", "cara-2", WAIT_S)).await?;
        // A round trip of somebody else's: by its end the agent's call is at the broker.
        self.maria.ask(&person::PersonOrder::Inbox).await?;
        let old = self.broker.pid();
        let broker = start_broker_after_kill(&mut self.broker, &self.dir).await?;
        line.step(
            "SIGKILL for the broker while the agent waits; a new one starts",
            "another pid",
            if broker == old {
                "same pid"
            } else {
                "another pid"
            },
            &format!("pid {old} is gone, pid {broker} replayed its journal"),
        );
        let inbox = self.maria.ask(&person::PersonOrder::Inbox).await?;
        let there = inbox
            .value()
            .get("waiting")
            .and_then(Value::as_array)
            .is_some_and(|all| all.iter().any(|id| id.as_str() == Some(&request)));
        line.step(
            "what was acknowledged is there: the access request",
            "waiting",
            if there { "waiting" } else { "lost" },
            &request,
        );
        let vote = person::PersonOrder::Approve {
            access_request: request,
        };
        let maria = self.maria.ask(&vote).await?;
        line.step(
            "maria says yes",
            "approved",
            &maria.word(),
            &maria.message(),
        );
        let minted = self.agent.answer().await?;
        line.step(
            "the agent, still waiting, gets its token",
            "token",
            &minted.word(),
            &because(&minted),
        );
        let case = self.read_case().await?;
        line.step(
            "the case token from before is good",
            "200",
            &case.text("status"),
            &case.text("body"),
        );
        let spent = self.use_on("ann", "ann-1").await?;
        line.step(
            "what the tightened rules ended is still ended",
            "401 token: revoked",
            &refusal(&spent),
            "",
        );
        let used = self.use_on("cara", "cara-2").await?;
        line.step(
            "the identity provider takes it",
            "200",
            &used.text("status"),
            &refusal_if_any(&used),
        );
        line.step(
            "after: the accounts",
            "ann off, bob on, cara off",
            &self.accounts().await?,
            "",
        );
        Ok(())
    }

    /// The work is done: what belonged to it ends everywhere, and stays so.
    async fn step_task_end(&mut self, line: &mut StepLog) -> Result<(), CliError> {
        let done = self.agent.ask(&workload::AgentOrder::Complete).await?;
        let why = format!(
            "entry {} ended {} live tokens",
            done.text("position"),
            done.text("tokens_revoked")
        );
        line.step("the task completes", "completed", &done.word(), &why);
        let until_refused = workload::AgentOrder::UseUntilRefused {
            token: "case".to_owned(),
            method: "GET".to_owned(),
            url: format!("{}/cases/INC-8841", self.server),
            within_ms: REFUSED_WITHIN_MS,
        };
        let refused = self.agent.ask(&until_refused).await?;
        let within = refused.number("after_ms") <= u64::from(REFUSED_WITHIN_MS);
        let got = if within {
            refusal(&refused)
        } else {
            format!("late: {}", refusal(&refused))
        };
        let why = format!(
            "after {} ms; the limit is {REFUSED_WITHIN_MS} ms",
            refused.text("after_ms")
        );
        line.step(
            "the case system refuses the task's token within a second",
            "401 token: revoked",
            &got,
            &why,
        );

        start_broker_after_kill(&mut self.broker, &self.dir).await?;
        let fresh = start_resource(&self.dir, &self.dev_config, &self.url).await?;
        self.server = fresh
            .hello
            .get("url")
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned();
        std::mem::replace(&mut self.resource, fresh).end().await?;
        let still = self.read_case().await?;
        line.step(
            "broker and resource server start anew: still refused",
            "401 token: revoked",
            &refusal(&still),
            "",
        );
        let late = self
            .agent
            .ask(&ask("case", "case.read", CASE, &[], CASES, "late", 0))
            .await?;
        line.step(
            "and nothing more is minted in the task",
            "TASK_ENDED",
            &late.word(),
            "",
        );
        Ok(())
    }

    /// An auditor needs the journal and a root noted at the beginning, nothing else.
    async fn step_audit(&mut self, line: &mut StepLog, noted: &str) -> Result<(), CliError> {
        let found = self.audit(noted).await?;
        let got = if found.get("whole") == Some(&json!(true)) {
            "whole"
        } else {
            "damaged"
        };
        let why = format!("{} entries", found.get("entries").unwrap_or(&Value::Null));
        line.step(
            "audit verify, against the root noted at the beginning",
            "whole",
            got,
            &why,
        );
        let size = Checkpoint::parse(noted)?.size;
        let forged = Checkpoint {
            size,
            root: crate::model::Digest::sha256(b"another history"),
        };
        let found = self.audit(&forged.to_string()).await?;
        let got = if found.get("error").is_some() {
            "refused"
        } else {
            "whole"
        };
        line.step("against a root of another history", "refused", got, "");
        Ok(())
    }

    async fn read_case(&mut self) -> Result<ChildReply, CliError> {
        let url = format!("{}/cases/INC-8841", self.server);
        self.agent
            .ask(&workload::AgentOrder::Use {
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
            .ask(&workload::AgentOrder::Use {
                token: token.to_owned(),
                method: "POST".to_owned(),
                url,
                body,
            })
            .await
    }

    /// `ann on, bob on, cara on`, as the resource server holds them.
    async fn accounts(&self) -> Result<String, CliError> {
        let answered = http::call("GET", &format!("{}/accounts", self.server), &[], None).await?;
        let all = answered.body.as_object().cloned().unwrap_or_default();
        let one = |(name, enabled): (&String, &Value)| {
            format!(
                "{name} {}",
                if enabled == &json!(true) { "on" } else { "off" }
            )
        };
        Ok(all.iter().map(one).collect::<Vec<_>>().join(", "))
    }

    /// The policy bundle with one more rule.
    fn tightened(&self) -> Result<PathBuf, CliError> {
        let dir = self.dir.join("tightened");
        let mut files = policy_dir::read(&self.dev_config.dir().join("policy"))?;
        files.insert("rules/30-freeze.cedar".to_owned(), FREEZE.to_owned());
        policy_dir::write(
            &dir,
            files
                .iter()
                .map(|(path, text)| (path.as_str(), text.as_str())),
        )?;
        Ok(dir)
    }

    async fn audit(&self, against: &str) -> Result<Value, CliError> {
        let me = std::env::current_exe().map_err(io_error("own executable"))?;
        let mut command = tokio::process::Command::new(me);
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
        let said = if done.status.success() {
            done.stdout
        } else {
            done.stderr
        };
        serde_json::from_slice(&said).map_err(|e| CliError::failed(format!("audit verify: {e}")))
    }

    async fn keep_running(&self, line: &StepLog) -> Result<(), CliError> {
        let (me, dir) = (
            shell::program_name(),
            shell::shell_quote(&self.dev_config.dir().to_string_lossy()),
        );
        line.note(&format!(
            "\nThe broker keeps running until Ctrl-C. In another terminal:\n  export DIPYLON_DEV={dir}\n  \
             {me} task open --agent triage --purpose \"look around\"\n  {me} inbox --as maria\n  {me} audit verify --data-dir {dir}"
        ));
        // The caller listens for signals, and drops this story then.
        std::future::pending().await
    }

    /// Everybody goes in order; whoever does not is killed.
    async fn shut_down(self) -> Result<(), CliError> {
        for child in [
            self.agent,
            self.other,
            self.dana,
            self.maria,
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

/// What olga adds between the yes and the mint.
const FREEZE: &str = r#"@id("accounts-keep_running-as-they-are")
@why("The identity provider is under maintenance.")
forbid (principal, action == Action::"account.disable", resource);
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

/// SIGKILL for the broker, and another in its place. Gives the new one's process id.
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

fn ask(
    keep: &str,
    action: &str,
    target: &str,
    params: &[&str],
    audience: &str,
    idempotency_key: &str,
    wait_s: u32,
) -> workload::AgentOrder {
    workload::AgentOrder::Ask {
        keep: keep.to_owned(),
        action: action.to_owned(),
        target: target.to_owned(),
        params: params.iter().map(|p| (*p).to_owned()).collect(),
        audience: audience.to_owned(),
        reason: "phishing confirmed".to_owned(),
        wait_s,
        idempotency_key: idempotency_key.to_owned(),
    }
}

/// Asks to disable an account; the token is kept under the request's own id.
fn disable(account: &str, idempotency_key: &str, wait_s: u32) -> workload::AgentOrder {
    ask(
        idempotency_key,
        "account.disable",
        &format!("Account::{account}"),
        &["end_sessions=true"],
        IDP,
        idempotency_key,
        wait_s,
    )
}

/// Rules, needs and arithmetic, or what went wrong.
fn because(answer: &ChildReply) -> String {
    let parts = [
        answer.message(),
        answer.text("reason"),
        answer.text("needs"),
        answer.text("rules"),
        answer.text("ttl"),
    ];
    parts
        .into_iter()
        .filter(|part| !part.is_empty())
        .collect::<Vec<_>>()
        .join("; ")
}

/// `401 token: revoked`, as the resource server said it.
fn refusal(answer: &ChildReply) -> String {
    let said = answer
        .value()
        .pointer("/body/error")
        .and_then(Value::as_str)
        .unwrap_or_default();
    let text = format!("{} {said}", answer.text("status"));
    if answer.message().is_empty() {
        text.trim_end().to_owned()
    } else {
        answer.message()
    }
}

fn refusal_if_any(answer: &ChildReply) -> String {
    if answer.text("status") == "200" {
        String::new()
    } else {
        refusal(answer)
    }
}
