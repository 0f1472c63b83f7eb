//! The transcripts of docs/policy.md: each is made again, with the commands that it shows, and compared; its example of tests is run.
//! `DIPYLON_BLESS=1` rewrites the transcripts: read them as their readers do.

use std::collections::BTreeMap;
use std::path::Path;

use crate::cli::setup::{CliSetup, DISABLE, READ, finish, program_in, text};
use crate::docs::{read, root};
use crate::support::*;

const PAGE: &str = "docs/policy.md";
const GUARDS: &str = "rules/20-guardrails.cedar";
const LOGS: &str = "https://logs.soc.example";
/// What stands for a text that is another one each time.
const VARIES: &str = "…";

type Files = BTreeMap<String, String>;

/// A block of commands with what they print.
struct Transcript<'p> {
    /// The heading that it is below.
    heading: &'p str,
    /// As it is on the page, without the fences.
    text: &'p str,
}

impl<'p> Transcript<'p> {
    /// Those of a page that begin with a policy command, or explain a decision.
    fn all(page: &'p str) -> Vec<Self> {
        let (mut heading, mut found) = ("", Vec::new());
        // Text and code take turns.
        for (n, part) in page.split("```").enumerate() {
            if n % 2 == 0 {
                let mut headings = part.lines().filter(|line| line.starts_with('#'));
                heading = headings
                    .next_back()
                    .map_or(heading, |h| h.trim_matches(['#', ' ']));
            } else if let Some(text) = part.strip_prefix('\n') {
                let commands = ["$ dipylon policy ", "$ dipylon explain "];
                if commands.iter().any(|c| text.starts_with(c)) {
                    found.push(Self { heading, text });
                }
            }
        }
        found
    }
}

/// A home with a served broker and the directory `policy`, for the commands of one block.
struct Situation {
    setup: CliSetup,
    /// What `dec_…` stands for in a command.
    decision: String,
}

impl Situation {
    /// The one that the text around a block describes.
    async fn of(heading: &str) -> Self {
        let mut env = TestEnvironment::new();
        let tests = read(&root().join("examples/soc/tests.toml"));
        // Every profile takes keys here, and one lifts what the other does.
        let own = "account.disable  *                     pending one-passkey";
        assert!(tests.contains(own), "{tests}");
        let tests = tests.replace(own, &own.replace("one-passkey", "one-security"));
        env.policy.insert("tests.toml".to_owned(), tests);
        let mut files = env.policy.clone();
        let mut change = |file: &str, from: &str, to: &str| {
            let text = files.get_mut(file).expect("a file");
            assert!(text.contains(from), "{file}: {from}");
            *text = text.replace(from, to);
        };
        let any_log = |change: &mut dyn FnMut(&str, &str, &str)| {
            let from = "when { resource is Host || resource.personal }";
            change(GUARDS, from, "when { resource is Host }");
        };
        match heading {
            "The check" => change(
                GUARDS,
                "Environment::\"prod\" }",
                "Environment::\"production\" }",
            ),
            "Tests" => any_log(&mut change),
            "Plan" => {
                any_log(&mut change);
                let mail = "target = \"LogSource::mail\"\nexpect = ";
                let pending = format!("{mail}\"pending\"\nprofiles = [\"one-security\"]");
                change("tests.toml", &pending, &format!("{mail}\"allowed\""));
                let row = "LogSource::mail       ";
                let (from, to) = (
                    format!("{row}pending one-security"),
                    format!("{row}allowed"),
                );
                change("tests.toml", &from, &to);
            }
            "Changes by two" => {
                let otto =
                    "\n[[person]]\nid = \"otto\"\nname = \"Otto Otis\"\nroles = [\"operator\"]\n";
                env.policy
                    .get_mut("people.toml")
                    .expect("people")
                    .push_str(otto);
                env.add_key("otto");
                files = env.policy.clone();
                let agents = files.get_mut("agents.toml").expect("agents");
                *agents = agents.replace("example-small-1", "example-small-2");
            }
            "Seeing what happened" => {}
            other => panic!("{PAGE}: nothing makes the situation of the transcript in {other:?}"),
        }
        let setup = CliSetup::start_in(env).await;
        write(setup.home.path(), &files);
        let decision = match heading {
            "Plan" | "Seeing what happened" => asked_before(&setup).await,
            _ => String::new(),
        };
        Self { setup, decision }
    }

    /// The commands of a block with what they print now.
    async fn run(&self, transcript: &Transcript<'_>) -> String {
        let mut all = String::new();
        for command in transcript.text.lines().filter(|l| l.starts_with("$ ")) {
            let typed = command.replace("dec_…", &self.decision);
            let args: Vec<&str> = typed.split_whitespace().skip(2).collect();
            let finished = self.setup.run(&args).await;
            all.push_str(&format!("{command}\n"));
            for line in (finished.out() + &finished.err()).lines() {
                all.push_str(&normalized(line));
                all.push('\n');
            }
        }
        all
    }
}

/// A day of `triage`: it reads a case, asks to search mail, and to disable an account of another environment. The last decision.
async fn asked_before(setup: &CliSetup) -> String {
    setup.open_task("triage").await;
    let request = async |args: &[&str], code: i32| {
        let args = [&["token", "request"], args].concat();
        setup.json(&args, code).await
    };
    request(&READ, 0).await;
    let mail = ["--action", "logs.search", "--target", "LogSource::mail"];
    let mail = [&mail[..], &["--audience", LOGS, "--param", "query=invoice"]].concat();
    request(&mail, 11).await;
    let bob = DISABLE.map(|arg| arg.replace("Account::ann", "Account::bob"));
    let denied = request(&bob.each_ref().map(String::as_str), 10).await;
    text(&denied["decision"])
}

/// The directory `policy` of a home.
fn write(home: &Path, files: &Files) {
    for (path, content) in files {
        let path = home.join("policy").join(path);
        std::fs::create_dir_all(path.parent().expect("parent")).expect("dir");
        std::fs::write(path, content).expect("written");
    }
}

/// A line with `…` for versions and thumbprints, for the part of an id after its kind, and for times, ages and remaining times.
fn normalized(line: &str) -> String {
    let mut out = String::new();
    let mut rest = line;
    while let Some(first) = rest.chars().next() {
        let is_of_word = |c: char| c.is_ascii_alphanumeric() || "_-:.".contains(c);
        let end = rest.find(|c| !is_of_word(c)).unwrap_or(rest.len());
        if end == 0 {
            out.push(first);
            rest = &rest[first.len_utf8()..];
            continue;
        }
        let (word, after) = rest.split_at(end);
        let ends_as_sentence = word.ends_with([':', '.']);
        let bare = word.trim_end_matches([':', '.']);
        if is_age(bare) {
            // `4m 59s` is one age.
            let before = out.trim_end_matches(' ').len();
            let last = out[..before].rfind(' ').map_or(0, |at| at + 1);
            if is_amount(&out[last..before], &["d", "h", "m"]) {
                out.truncate(last);
            }
            out.push_str(VARIES);
        } else if bare.len() == 43 && !bare.contains(['.', ':']) || is_time(bare) {
            out.push_str(VARIES);
        } else if let Some((kind, id)) = bare.split_once('_').filter(|(_, id)| id.len() == 22) {
            assert!(!id.contains('.'), "{line}");
            out.push_str(&format!("{kind}_{VARIES}"));
        } else {
            out.push_str(bare);
        }
        if ends_as_sentence {
            out.push_str(&word[bare.len()..]);
        }
        rest = after;
    }
    // How many of the requests came at night is a matter of when the test runs.
    match (out.split_once(", "), out.find(" at night")) {
        (Some((before, _)), Some(at)) if line.starts_with("people ") => {
            format!("{before}, {VARIES}{}", &out[at..])
        }
        _ => out,
    }
}

/// A number with one of these units.
fn is_amount(word: &str, units: &[&str]) -> bool {
    units.iter().any(|unit| {
        let number = word.strip_suffix(unit).unwrap_or_default();
        !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit() || b == b'.')
    })
}

/// A time of seconds: what passed, or is left. Whole minutes and more are someone's choice.
fn is_age(word: &str) -> bool {
    is_amount(word, &["s", "ms"])
}

/// RFC 3339, in UTC.
fn is_time(word: &str) -> bool {
    let shape: String = word
        .chars()
        .map(|c| if c.is_ascii_digit() { '0' } else { c })
        .collect();
    shape.starts_with("0000-00-00T00:00:00") && shape.ends_with('Z')
}

/// The tests that the page shows pass for the example.
#[tokio::test]
async fn the_tests_of_the_policy_page_pass() {
    let page = read(&root().join(PAGE));
    let section = page.split("\n## Tests\n").nth(1).expect("a section");
    let shown = section.split("```toml\n").nth(1).expect("tests");
    let shown = shown.split("```").next().expect("their end");
    let home = tempfile::tempdir().expect("dir");
    let mut files = soc();
    files.insert("tests.toml".to_owned(), shown.to_owned());
    write(home.path(), &files);
    let tested = finish(program_in(home.path(), &["policy", "test", "policy"])).await;
    let said = tested.code(0).out();
    assert!(
        said.contains("passed: 26 requests of 2 cases and 1 matri"),
        "{said}"
    );
}

#[test]
fn what_varies_is_left_out() {
    for (line, expected) in [
        (
            "ttl  4m 57s = least of asked 5m, cap 15m, task 59m 58s",
            "ttl  … = least of asked 5m, cap 15m, task …",
        ),
        (
            "issued 2.902s before, at 2026-11-30T05:52:34Z",
            "issued … before, at …",
        ),
        (
            "dec_JIDOmWS0DFHxfvSwKuzzdQ: 3 of 17 rules.",
            "dec_…: 3 of 17 rules.",
        ),
        (
            "version zDch_5XknNsTu3giL5Ojx9clmTV24bphvjT6jVxhC0s, of olga",
            "version …, of olga",
        ),
        (
            "people   1 more (1 instead of 0), 1 more (1 instead of 0) at night, 1 approval more",
            "people   1 more (1 instead of 0), … at night, 1 approval more",
        ),
        (
            "rules/20-guardrails.cedar:28:32: rule",
            "rules/20-guardrails.cedar:28:32: rule",
        ),
    ] {
        assert_eq!(normalized(line), expected);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_transcripts_of_the_policy_page_are_what_the_commands_print() {
    let path = root().join(PAGE);
    let page = read(&path);
    let transcripts = Transcript::all(&page);
    let mut made = Vec::new();
    for transcript in &transcripts {
        let situation = Situation::of(transcript.heading).await;
        made.push(situation.run(transcript).await);
    }
    if std::env::var_os("DIPYLON_BLESS").is_some() {
        let blocks = transcripts.iter().zip(&made);
        let blessed = blocks.fold(page.clone(), |page, (shown, made)| {
            page.replacen(shown.text, made, 1)
        });
        std::fs::write(&path, blessed).expect("written");
    } else {
        for (shown, made) in transcripts.iter().zip(&made) {
            let heading = shown.heading;
            assert_eq!(
                shown.text, made,
                "{heading}: DIPYLON_BLESS=1 rewrites the page"
            );
        }
    }
    let commands: String = made.concat();
    for command in [
        "policy check",
        "policy test",
        "policy plan",
        "policy apply",
        "explain",
    ] {
        let is_shown = commands.contains(&format!("$ dipylon {command} "));
        assert!(is_shown, "{PAGE} has no transcript of {command}");
    }
}
