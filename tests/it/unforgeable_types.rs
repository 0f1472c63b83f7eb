//! Unforgeable types: values returned by the gates cannot be constructed elsewhere, cloned, deserialized or used twice.

use std::path::{Path, PathBuf};

#[test]
fn trybuild() {
    let cases = trybuild::TestCases::new();
    cases.compile_fail("tests/fail/*.rs");
}

/// Each gate type, the one file that may construct it, and the functions there that return it.
const GATE_TYPES: &[(&str, &str, &[&str])] = &[
    ("Attested", "verify/mod.rs", &["attest"]),
    ("Possession", "verify/possession.rs", &["check"]),
    ("Authenticated", "verify/mod.rs", &["new"]),
    ("Verified", "verify/mod.rs", &["verify"]),
    ("Approved", "approve/mod.rs", &["decide"]),
    ("Reapproved", "approve/reapproval.rs", &["reapprove"]),
    (
        "Recorded",
        "state/read.rs",
        &[
            "new",
            "rules",
            "trusted_keys",
            "signing_key",
            "freeze",
            "task",
            "access_request",
            "grant",
            "person",
            "invitation",
            "proposals_of",
        ],
    ),
    ("Committed", "journal/mod.rs", &[]),
];

fn sources(dir: &Path, out: &mut Vec<PathBuf>) {
    for file in std::fs::read_dir(dir).expect("dir") {
        let path = file.expect("file").path();
        if path.is_dir() {
            sources(&path, out);
        } else if path.extension().is_some_and(|e| e == "rs") {
            out.push(path);
        }
    }
}

#[test]
fn gate_types_have_one_constructor() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    assert!(files.len() > 50);
    for (gate_type, home, makers) in GATE_TYPES {
        let text = std::fs::read_to_string(root.join(home)).expect("home");
        let at = [" {", "<"]
            .iter()
            .find_map(|after| text.find(&format!("pub struct {gate_type}{after}")))
            .unwrap_or_else(|| panic!("{gate_type} is declared in {home}"));
        let body = &text[at..at + text[at..].find("\n}").expect("end")];
        for line in body.lines().skip(1) {
            assert!(
                !line.trim_start().starts_with("pub"),
                "{gate_type} has a public field: {line}"
            );
        }
        let before = &text[..at];
        let derives: String = before
            .lines()
            .rev()
            .take_while(|l| l.starts_with("#[") || l.starts_with("///"))
            .collect();
        for forbidden in ["Clone", "Copy", "Serialize", "Deserialize", "Default"] {
            // A fact that is durable, and a value that cannot leave its round, may be had twice.
            let allowed = matches!(*gate_type, "Committed" | "Recorded") && forbidden == "Clone";
            assert!(
                allowed || !derives.contains(forbidden),
                "{gate_type} is {forbidden}"
            );
        }
        for path in &files {
            let text = std::fs::read_to_string(path).expect("source");
            let text = text.split("#[cfg(test)]").next().unwrap_or_default();
            let relative = path
                .strip_prefix(&root)
                .expect("inside")
                .to_string_lossy()
                .into_owned();
            // `Committed` is constructed by the journal's writer, and by its replay of what is stored.
            let stored = ["journal/writer.rs", "journal/replay.rs"].contains(&relative.as_str());
            let here = relative == *home || (*gate_type == "Committed" && stored);
            let built = text.lines().filter(|l| {
                let code = l.split("//").next().unwrap_or_default();
                code.match_indices(&format!("{gate_type} {{"))
                    .any(|(i, _)| {
                        let head = code[..i].trim_end();
                        let part_of_longer = code[..i]
                            .ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':');
                        !part_of_longer
                            && !head.ends_with("struct")
                            && !head.ends_with("impl")
                            && !head.ends_with("for")
                            && !head.ends_with("->")
                            && !head.ends_with('&')
                    })
            });
            assert!(
                here || built.count() == 0,
                "{relative} constructs a {gate_type}"
            );
        }
        for line in text
            .lines()
            .filter(|l| l.contains("fn ") && l.contains("pub"))
        {
            let answer = line.split("->").nth(1).unwrap_or_default();
            let name = line
                .split("fn ")
                .nth(1)
                .and_then(|r| r.split(['(', '<']).next())
                .unwrap_or_default();
            if answer.contains(*gate_type)
                && !answer.contains(&format!("&{gate_type}"))
                && !answer.contains(&format!("Arc<{gate_type}>"))
            {
                assert!(
                    makers.contains(&name),
                    "{home}: fn {name} returns a {gate_type}"
                );
            }
        }
    }
}

/// What makes an append and a round, and the files that may use it.
const ROUND_MAKERS: &[(&str, &[&str])] = &[
    ("Append::new(", &["state/read.rs"]),
    ("Append::unread(", &["journal/mod.rs", "broker/refusals.rs"]),
    ("ReadSet::new(", &["state/read.rs"]),
    ("Recorded::new", &["state/read.rs"]),
    ("Read::new(", &["state/mod.rs"]),
    (
        "state.read()",
        &[
            "broker/transaction.rs",
            "broker/governance/recovery.rs",
            "approve/audit.rs",
            // Of a journal that no broker writes to meanwhile: it appends nothing.
            "cli/doctor/stored.rs",
        ],
    ),
];

/// No use case names a stream for an append, or reads outside a round.
#[test]
fn appends_rest_on_what_a_round_read() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    for path in &files {
        let text = std::fs::read_to_string(path).expect("source");
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        let relative = path.strip_prefix(&root).expect("inside");
        for (maker, homes) in ROUND_MAKERS {
            // A method call may be spread over lines.
            let joined = code.split_whitespace().collect::<String>();
            let is_home = homes.iter().any(|home| relative == Path::new(home));
            let used = joined.match_indices(maker).any(|(at, _)| {
                let before = joined[..at].chars().next_back();
                before.is_none_or(|c| !c.is_alphanumeric() && c != '_')
            });
            assert!(!used || is_home, "{}: {maker}", relative.display());
        }
    }
}
