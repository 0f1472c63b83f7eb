//! `--json`: every verb of the command tree prints exactly one JSON value to stdout, also for an error.

use std::collections::BTreeSet;

use clap::CommandFactory as _;
use dipylon::cli::Cli;
use serde_json::{Value, json};

use super::setup::{CliSetup, DISABLE, Finished, READ, finish, program_in, text};

/// Verbs that run until they are stopped, or print a stream: they have tests of their own.
const STREAMS: [&str; 2] = ["demo", "serve"];

/// Every verb that people see, as its words.
fn verbs() -> BTreeSet<String> {
    fn walk(command: &clap::Command, path: &str, out: &mut BTreeSet<String>) {
        for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
            let path = format!("{path} {}", sub.get_name()).trim().to_owned();
            match sub.has_subcommands() {
                true => walk(sub, &path, out),
                false => drop(out.insert(path)),
            }
        }
    }
    let mut out = BTreeSet::new();
    walk(&Cli::command(), "", &mut out);
    assert!(out.contains("token request"), "{out:?}");
    out
}

/// The one error in the form of every error.
fn error(value: &Value, code: i32) -> &Value {
    let error = &value["error"];
    let names = error.as_object().expect("an error").keys();
    let names: BTreeSet<&str> = names.map(String::as_str).collect();
    let expected = ["correlation_id", "exit", "message", "next_step", "reason"];
    assert_eq!(names, BTreeSet::from(expected), "{value}");
    assert_eq!(error["exit"], code, "{value}");
    error
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn usage_errors_of_every_verb_are_one_json_value() {
    let home = tempfile::tempdir().expect("dir");
    for verb in verbs() {
        let words: Vec<&str> = verb.split(' ').collect();
        for args in [
            [&words[..], &["--no-such-option", "--json"]].concat(),
            [&["--json"], &words[..], &["--no-such-option"]].concat(),
        ] {
            let finished = finish(program_in(home.path(), &args)).await;
            finished.code(2);
            let (stdout, stderr) = (finished.out(), finished.err());
            let (used, unused) = match words[0] {
                // Stdout belongs to the command.
                "exec" => (stderr, stdout),
                _ => (stdout, stderr),
            };
            assert_eq!(unused, "", "{args:?}");
            let value: Value = serde_json::from_str(&used).expect("one JSON value");
            let message = text(&error(&value, 2)["message"]);
            assert!(message.contains("--no-such-option"), "{args:?}: {message}");
        }
    }
    // Without a verb, a missing argument, and a value that cannot be read.
    for (args, message) in [
        (&["--json"][..], "no command given"),
        (&["--json", "token", "request"], "--action"),
        (&["task", "end", "x", "--json"], "task"),
        (&["--json", "serve"], "--dev"),
    ] {
        let value = finish(program_in(home.path(), args)).await.code(2).json();
        let got = text(&error(&value, 2)["message"]);
        assert!(got.contains(message), "{args:?}: {got}");
    }
    // An option of the command behind `--` is not this program's.
    let args = ["exec", "--no-such-option", "--", "true", "--json"];
    let finished = finish(program_in(home.path(), &args)).await;
    finished.code(2).err_contains("Usage: ");
    for (option, member) in [("--help", "help"), ("--version", "version")] {
        let args = ["--json", option];
        let value = finish(program_in(home.path(), &args)).await.code(0).json();
        assert!(text(&value[member]).contains("dipylon"), "{value}");
    }
}

/// Runs verbs with --json and notes which.
struct VerbRunner {
    setup: CliSetup,
    run: BTreeSet<String>,
}

impl VerbRunner {
    async fn finished(&mut self, verb: &str, args: &[&str]) -> Finished {
        self.run.insert(verb.to_owned());
        let words: Vec<&str> = verb.split(' ').collect();
        let args = [&words[..], args, &["--json"]].concat();
        self.setup.run(&args).await
    }

    /// The one value on stdout, with nothing on stderr.
    async fn one(&mut self, verb: &str, args: &[&str], code: i32) -> Value {
        let finished = self.finished(verb, args).await;
        assert_eq!(finished.err(), "", "{verb}");
        let out = finished.code(code).out();
        assert_eq!(out.matches('\n').count(), 1, "{verb}: {out}");
        finished.json()
    }
}

const DRILL: &str =
    "[fact.drill]\ntitle = \"A drill\"\nsafe = true\nnormal = false\nmax = \"1h\"\n";
const DRILL_RULE: &str = "@id(\"drill\") forbid (principal, action == Action::\"host.collect\", resource) when { context.facts.drill };";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_verb_prints_one_json_value() {
    let setup = CliSetup::start().await;
    for (path, content) in &setup.served.env.policy {
        let path = setup.path("policy").join(path);
        std::fs::create_dir_all(path.parent().expect("parent")).expect("dir");
        std::fs::write(path, content).expect("policy");
    }
    for (path, content) in [("facts.toml", DRILL), ("rules/91-drill.cedar", DRILL_RULE)] {
        std::fs::write(setup.path("policy").join(path), content).expect("policy");
    }
    let journal = setup.served.dir.display().to_string();
    let mut verbs_run = VerbRunner {
        setup,
        run: BTreeSet::new(),
    };
    let v = &mut verbs_run;
    let (olga, maria) = (["--key", "olga.pem"], ["--key", "maria.pem"]);
    let open = ["--purpose", "contain", "--heartbeat", "60s"];

    let opened = v
        .one(
            "task open",
            &[&open[..], &["--evidence", "triage"]].concat(),
            0,
        )
        .await;
    let task = text(&opened["task"]);
    assert_eq!(v.one("task show", &[], 0).await[0]["state"], "running");
    v.one("task keep-alive", &[], 0).await;
    v.one("task list", &olga, 0).await;
    v.one("task timeline", &[&[task.as_str()], &olga[..]].concat(), 0)
        .await;

    let token = v.one("token request", &READ, 0).await;
    assert_eq!(token["outcome"], "token");
    std::fs::write(v.setup.path("token"), token["token"].as_str().expect("jwt")).expect("file");
    let file = ["--token", "token"];
    let request = ["--url", "http://127.0.0.1:8080/cases/1"];
    v.one("token proof", &[&file[..], &request].concat(), 0)
        .await;
    let cases = [&file[..], &["--key", "cases.pem"]].concat();
    assert_eq!(v.one("token introspect", &cases, 0).await["active"], true);
    assert_eq!(v.one("token consume", &cases, 0).await["jti"], token["jti"]);
    v.one("token list", &olga, 0).await;
    let jti = text(&token["jti"]);
    v.one("token revoke", &[&[jti.as_str()], &olga[..]].concat(), 0)
        .await;
    v.one("explain", &[&[jti.as_str()], &olga[..]].concat(), 0)
        .await;

    let receipt = [
        "receipt",
        &jti,
        "--out",
        "receipt.json",
        "--key",
        "olga.pem",
    ];
    v.setup.run(&receipt).await.code(0);
    let keys = v.setup.served.broker.jwks().to_string();
    std::fs::write(v.setup.path("jwks.json"), keys).expect("file");
    let keys = ["receipt.json", "--keys", "jwks.json"];
    let verified = v.one("receipt verify", &keys, 0).await;
    assert_eq!(
        (&verified["valid"], &verified["jti"]),
        (&json!(true), &token["jti"])
    );

    // One access request for each vote; the task of the agent opened last is the current one.
    for (n, (verb, status)) in [
        ("request approve", "approved"),
        ("approve", "approved"),
        ("request deny", "denied"),
        ("deny", "denied"),
        ("request cancel", "cancelled"),
    ]
    .into_iter()
    .enumerate()
    {
        if n > 0 {
            v.setup.open_task("triage").await;
        }
        let pending = v.one("token request", &DISABLE, 11).await;
        let id = text(&pending["access_request"]);
        for list in ["inbox", "request list"] {
            assert_eq!(v.one(list, &maria, 0).await[0]["access_request"], json!(id));
        }
        for show in ["show", "request show"] {
            v.one(show, &[&[id.as_str()], &maria[..]].concat(), 0).await;
        }
        if verb == "request cancel" {
            assert_eq!(v.one(verb, &[&id], 0).await["status"], status);
        } else {
            let vote = [&[id.as_str(), "--yes", "--realm", "test"], &maria[..]].concat();
            let voted = v.one(verb, &vote, 0).await;
            assert_eq!(voted["access_request"]["status"], status, "{verb}");
        }
        let recommended = v.one("request recommended", &[], 0).await;
        assert_eq!(recommended, json!([]));
        // A stream: one value a line; this one ends at once.
        let watched = v.finished("request watch", &[&id]).await;
        for line in watched.out().lines() {
            let value: Value = serde_json::from_str(line).expect("one JSON value a line");
            assert_eq!(value["access_request"], json!(id));
        }
    }
    assert_eq!(v.one("task complete", &[], 0).await["cause"], "completed");
    v.one("task end", &[&[task.as_str()], &olga[..]].concat(), 0)
        .await;

    v.one("policy check", &["policy"], 0).await;
    v.one("policy test", &["policy"], 0).await;
    v.one("policy plan", &[&["policy"], &olga[..]].concat(), 0)
        .await;
    v.one("policy apply", &[&["policy"], &olga[..]].concat(), 0)
        .await;
    // By the next bundle others agree to the one after it.
    let people = v.setup.path("policy").join("people.toml");
    let before = std::fs::read_to_string(&people).expect("people");
    let asking = format!("{before}\n[changes]\nagree = \"one-security\"\n");
    for (text, code) in [(&asking, 0), (&before, 11)] {
        std::fs::write(&people, text).expect("people");
        let args = [&["policy"], &olga[..]].concat();
        let applied = v.one("policy apply", &args, code).await;
        if let Some(proposed) = applied["access_request"].as_str() {
            v.one("policy withdraw", &[&[proposed], &olga[..]].concat(), 0)
                .await;
        }
    }
    // By the bundle in force others agree to a value that is not safe.
    let set = [&["drill", "true", "--for", "60s"], &olga[..]].concat();
    assert_eq!(v.one("fact set", &set, 0).await["changed"], true);
    let facts = v.one("fact list", &olga, 0).await;
    assert_eq!(
        (&facts[0]["value"], &facts[0]["by"]),
        (&json!(true), &json!("olga"))
    );
    let cleared = v
        .one("fact clear", &[&["drill"], &olga[..]].concat(), 11)
        .await;
    assert_eq!(cleared["changed"], false);
    v.one("policy rules", &olga, 0).await;
    let status = v.one("policy status", &olga, 0).await;
    let history = v.one("policy history", &olga, 0).await;
    assert_eq!(history[0]["version"], status["version"]);
    let exported = [&["exported"], &olga[..]].concat();
    v.one("policy export", &exported, 0).await;
    error(&v.one("policy export", &exported, 1).await, 1);
    let same = v.one("policy diff", &exported, 0).await;
    assert_eq!(same["differs"], false);
    let other = [&["policy"], &olga[..]].concat();
    assert_eq!(v.one("policy diff", &other, 1).await["differs"], true);
    error(
        &v.one("policy diff", &[&["nowhere"], &olga[..]].concat(), 2)
            .await,
        2,
    );
    let waits = v.one("policy rollback", &olga, 11).await;
    let waits = text(&waits["access_request"]);
    v.one(
        "policy withdraw",
        &[&[waits.as_str()], &olga[..]].concat(),
        0,
    )
    .await;
    v.one("agent list", &olga, 0).await;
    v.one("agent show", &[&["triage"], &olga[..]].concat(), 0)
        .await;
    let why = ["--reason", "test"];
    v.one(
        "agent suspend",
        &[&["reporter"], &why[..], &olga].concat(),
        0,
    )
    .await;
    v.one("agent resume", &[&["reporter"], &olga[..]].concat(), 0)
        .await;
    let invited = v
        .one("approver invite", &[&["lee"], &olga[..]].concat(), 0)
        .await;
    assert!(invited["code"].is_string());
    v.one("approver list", &olga, 0).await;
    let code = ["lee", "0000-0000-0000"];
    v.one("approver confirm", &[&code[..], &olga].concat(), 1)
        .await;
    v.one("approver confirm-on-host", &code, 2).await;
    v.one("approver revoke", &[&["lee"], &olga[..]].concat(), 0)
        .await;
    let scope = ["agent/reporter"];
    v.one("freeze", &[&scope[..], &why, &olga].concat(), 0)
        .await;
    v.one("unfreeze", &[&scope[..], &olga].concat(), 0).await;
    v.one("doctor", &[], 0).await;
    v.one("audit verify", &["--data-dir", &journal], 0).await;
    v.one("key new", &["--out", "new.pem"], 0).await;
    v.one("key show", &["--key", "new.pem"], 0).await;
    v.one("dev trust-domain", &["--out", "spiffe"], 0).await;
    let svid = [
        "--domain-key",
        "spiffe/trust-domain.pem",
        "--audience",
        "http://127.0.0.1",
        "--spiffe-id",
        "spiffe://soc.example/agent/triage",
    ];
    v.one("dev svid", &svid, 0).await;
    // A result that is a list of problems, and an error.
    v.one("config check", &["/nowhere.toml"], 1).await;
    error(&v.one("config show", &["/nowhere.toml"], 1).await, 1);
    let recovery = ["--config", "/nowhere.toml", "--policy", "policy"];
    let recovery = [&recovery[..], &why].concat();
    error(&v.one("recover operators", &recovery, 1).await, 1);

    // Stdout is the command's; each event is a line on stderr.
    let exec = [
        &[
            "--evidence",
            "triage",
            "--audience-url",
            "http://127.0.0.1:1",
        ],
        &READ[..],
        &["--json", "--", "echo", "mine"],
    ];
    v.run.insert("exec".to_owned());
    let finished = v.setup.run(&[&["exec"], &exec.concat()[..]].concat()).await;
    let events = finished.err();
    assert!(!events.is_empty());
    for line in events.lines() {
        serde_json::from_str::<Value>(line).expect("one JSON value a line");
    }
    assert!(["", "mine\n"].contains(&finished.out().as_str()));

    let expected: BTreeSet<String> = verbs()
        .into_iter()
        .filter(|verb| !STREAMS.contains(&verb.as_str()))
        .collect();
    assert_eq!(v.run, expected, "a verb without a row here, or an old row");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn errors_of_the_broker_have_the_same_form() {
    let setup = CliSetup::start().await;
    let unknown = ["agent", "show", "nothing", "--key", "olga.pem"];
    let refused = setup.json(&unknown, 1).await;
    let refused = error(&refused, 1);
    assert_eq!(refused["reason"], "NOT_FOUND");
    assert!(text(&refused["correlation_id"]).starts_with("cor_"));
    assert!(refused["next_step"].is_string());
    // A local one has no reason of the broker.
    let local = setup.json(&["key", "show", "--key", "none.pem"], 1).await;
    assert_eq!(error(&local, 1)["reason"], Value::Null);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn empty_environment_variables_are_unset() {
    let setup = CliSetup::start().await;
    setup.open_task("triage").await;
    let mut list = setup.program(&["task", "show", "--json"]);
    for name in variables() {
        if name != "DIPYLON_URL" {
            list.env(name, "");
        }
    }
    let shown = finish(list).await.code(0).json();
    assert_eq!(shown[0]["state"], "running", "{shown}");
    // Empty is not a value: the development broker is looked for.
    let mut inbox = setup.program(&["inbox", "--json", "--key", "maria.pem"]);
    inbox.env("DIPYLON_URL", "");
    let value = finish(inbox).await.code(2).json();
    let message = text(&value["error"]["message"]);
    assert!(message.contains("no broker URL given"), "{message}");
}

/// Every environment variable of an option.
fn variables() -> BTreeSet<String> {
    fn walk(command: &clap::Command, out: &mut BTreeSet<String>) {
        let names = command.get_arguments().filter_map(clap::Arg::get_env);
        out.extend(names.filter_map(|name| name.to_str().map(str::to_owned)));
        command.get_subcommands().for_each(|sub| walk(sub, out));
    }
    let mut out = BTreeSet::new();
    walk(&Cli::command(), &mut out);
    assert!(out.contains("DIPYLON_TASK") && out.contains("DIPYLON_KEY"));
    out
}
