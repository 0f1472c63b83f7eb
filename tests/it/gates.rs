//! Gate passes cannot be forged, copied, stored or used twice.

use std::path::{Path, PathBuf};

#[test]
fn programs_that_must_not_compile() {
    let cases = trybuild::TestCases::new();
    cases.compile_fail("tests/fail/*.rs");
}

/// Each pass, the one file that may build it, and the functions there that answer with one.
const PASSES: &[(&str, &str, &[&str])] = &[
    ("Attested", "verify/mod.rs", &["attest"]),
    ("Possession", "verify/possession.rs", &["check"]),
    (
        "Authenticated",
        "verify/mod.rs",
        &["for_opening", "for_task"],
    ),
    ("Verified", "verify/mod.rs", &["stand"]),
    ("Approved", "approve/mod.rs", &["decide"]),
    ("Reapproved", "approve/mod.rs", &["reapprove"]),
    ("RecordedGrant", "state/records.rs", &["new"]),
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
fn no_wider_constructor_than_the_check() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    assert!(files.len() > 50);
    for (pass, home, makers) in PASSES {
        let text = std::fs::read_to_string(root.join(home)).expect("home");
        let at = text
            .find(&format!("pub struct {pass} {{"))
            .unwrap_or_else(|| panic!("{pass} is declared in {home}"));
        let body = &text[at..at + text[at..].find("\n}").expect("end")];
        for line in body.lines().skip(1) {
            assert!(
                !line.trim_start().starts_with("pub"),
                "{pass} has a field others can write: {line}"
            );
        }
        let before = &text[..at];
        let derives: String = before
            .lines()
            .rev()
            .take_while(|l| l.starts_with("#[") || l.starts_with("///"))
            .collect();
        for forbidden in ["Clone", "Copy", "Serialize", "Deserialize", "Default"] {
            let allowed = *pass == "Committed" && forbidden == "Clone";
            assert!(
                allowed || !derives.contains(forbidden),
                "{pass} is {forbidden}"
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
            // The writer is the journal's own inner room: it alone makes `Committed`.
            let here =
                relative == *home || (*pass == "Committed" && relative == "journal/writer.rs");
            let built = text.lines().filter(|l| {
                let code = l.split("//").next().unwrap_or_default();
                code.match_indices(&format!("{pass} {{")).any(|(i, _)| {
                    let head = code[..i].trim_end();
                    let part_of_longer =
                        code[..i].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':');
                    !part_of_longer
                        && !head.ends_with("struct")
                        && !head.ends_with("impl")
                        && !head.ends_with("for")
                        && !head.ends_with("->")
                        && !head.ends_with('&')
                })
            });
            assert!(here || built.count() == 0, "{relative} builds a {pass}");
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
            if answer.contains(*pass)
                && !answer.contains(&format!("&{pass}"))
                && !answer.contains(&format!("Arc<{pass}>"))
            {
                assert!(
                    makers.contains(&name),
                    "{home}: fn {name} answers with a {pass}"
                );
            }
        }
    }
}
