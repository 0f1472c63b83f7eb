//! The documents: relative links resolve, `docs/invariants.md` names code and tests that exist, the code cites ids that it
//! has, and every field of the broker stands in its table of what one process remembers.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

pub fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Every file below a directory whose name has this ending; build output is left out.
fn files(dir: &Path, ending: &str, out: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).expect("dir") {
        let path = entry.expect("entry").path();
        let name = path.file_name().expect("name").to_string_lossy();
        if path.is_symlink() || name == "target" || name == ".git" {
            continue;
        }
        if path.is_dir() {
            files(&path, ending, out);
        } else if name.ends_with(ending) {
            out.push(path);
        }
    }
}

fn pages() -> Vec<PathBuf> {
    let mut pages = Vec::new();
    files(root(), ".md", &mut pages);
    assert!(pages.len() >= 10, "the pages were not found: {pages:?}");
    pages
}

/// Text and address of each link of a page, code blocks left out.
fn links(page: &str) -> Vec<(String, String)> {
    let mut prose = String::new();
    let mut in_code = false;
    for line in page.lines() {
        if line.trim_start().starts_with("```") {
            in_code = !in_code;
        } else if !in_code {
            prose.push_str(line);
            prose.push('\n');
        }
    }
    let mut found = Vec::new();
    for (at, _) in prose.match_indices("](") {
        let text = prose[..at].rsplit('[').next().unwrap_or_default();
        let address = prose[at + 2..].split(')').next().unwrap_or_default();
        found.push((text.to_owned(), address.to_owned()));
    }
    found
}

/// The anchors of a page, as forges make them of headings.
fn anchors(page: &str) -> BTreeSet<String> {
    let headings = page.lines().filter(|line| line.starts_with('#'));
    headings
        .map(|line| {
            let kept = |c: &char| c.is_alphanumeric() || " -_".contains(*c);
            let text = line.trim_start_matches('#').trim().to_lowercase();
            text.chars()
                .filter(kept)
                .collect::<String>()
                .replace(' ', "-")
        })
        .collect()
}

#[test]
fn relative_links_resolve() {
    let mut checked = 0;
    let mut broken = Vec::new();
    for page in pages() {
        let text = read(&page);
        for (_, address) in links(&text) {
            if address.contains("://") || address.starts_with("mailto:") || address.contains(' ') {
                continue;
            }
            let (file, anchor) = address.split_once('#').unwrap_or((&address, ""));
            let target = match file {
                "" => page.clone(),
                file => page.parent().expect("a directory").join(file),
            };
            let exists = target.exists();
            let known = anchor.is_empty()
                || (exists && target.is_file() && anchors(&read(&target)).contains(anchor));
            if !exists || !known {
                broken.push(format!("{}: {address}", page.display()));
            }
            checked += 1;
        }
    }
    assert!(checked > 100, "{checked} links were found");
    assert!(broken.is_empty(), "{broken:#?}");
}

/// Whether a Rust file defines a function, type or constant of this name.
fn defines(code: &str, name: &str) -> bool {
    ["fn", "struct", "enum", "trait", "const", "static", "type"]
        .iter()
        .any(|kind| {
            code.match_indices(&format!("{kind} {name}"))
                .any(|(at, found)| {
                    let next = code[at + found.len()..].chars().next();
                    !next.is_some_and(|c| c.is_alphanumeric() || c == '_')
                })
        })
}

/// Whether a Rust file has a test of this name.
fn has_test(code: &str, name: &str) -> bool {
    code.match_indices(&format!("fn {name}(")).any(|(at, _)| {
        // Attributes stand between the last item's end and the function.
        let before = code[..at]
            .rsplit_once("\n}\n")
            .map_or(&code[..at], |(_, rest)| rest);
        before.contains("#[test]") || before.contains("#[tokio::test")
    })
}

struct Invariant {
    id: String,
    text: String,
}

fn invariants() -> Vec<Invariant> {
    let page = read(&root().join("docs/invariants.md"));
    let sections = page.split("\n### ").skip(1);
    let found: Vec<Invariant> = sections
        .map(|section| Invariant {
            id: section
                .split_whitespace()
                .next()
                .unwrap_or_default()
                .to_owned(),
            text: section.split("\n## ").next().unwrap_or_default().to_owned(),
        })
        .collect();
    for (n, invariant) in found.iter().enumerate() {
        assert_eq!(invariant.id, format!("INV-{}", n + 1), "ids count up");
    }
    found
}

#[test]
fn invariants_name_code_and_tests_that_exist() {
    let found = invariants();
    assert!(found.len() >= 14);
    let mut missing = Vec::new();
    for Invariant { id, text } in &found {
        if text.contains("- Not built:") {
            continue;
        }
        for (heading, needs_test) in [("- Upheld by:", false), ("- Proved by:", true)] {
            let part = text.split(heading).nth(1).unwrap_or_default();
            let part = part.split("\n- ").next().unwrap_or_default();
            let named = links(part);
            assert!(!named.is_empty(), "{id}: `{heading}` names nothing");
            for (name, address) in named {
                let name = name.trim_matches('`');
                let code = read(&root().join("docs").join(&address));
                let there = if needs_test {
                    has_test(&code, name)
                } else {
                    defines(&code, name)
                };
                if !there {
                    missing.push(format!("{id}: {name} is not in {address}"));
                }
            }
        }
    }
    assert!(missing.is_empty(), "{missing:#?}");
}

fn sources() -> Vec<PathBuf> {
    let mut found = Vec::new();
    for dir in ["src", "sdk/src", "tests/it", "benches"] {
        files(&root().join(dir), ".rs", &mut found);
    }
    found
}

#[test]
fn code_cites_invariants_that_exist() {
    let known: BTreeSet<String> = invariants().into_iter().map(|one| one.id).collect();
    let mut cited = 0;
    for path in sources() {
        if path.ends_with("docs.rs") {
            continue;
        }
        for after in read(&path).split("INV-").skip(1) {
            let number: String = after.chars().take_while(char::is_ascii_digit).collect();
            let id = format!("INV-{number}");
            assert!(known.contains(&id), "{}: {id}", path.display());
            cited += 1;
        }
    }
    assert!(cited > 20, "{cited} citations were found");
}

/// Names with two underscores or more, in backticks: tests, tables and functions that a how-to sends its reader to.
#[test]
fn names_in_how_tos_exist() {
    let code: String = sources().iter().map(|path| read(path)).collect();
    let mut checked = 0;
    for page in ["docs/architecture.md", "CONTRIBUTING.md"] {
        let text = read(&root().join(page));
        for name in text.split('`').skip(1).step_by(2) {
            let plain = name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
            if plain && name.matches('_').count() >= 2 {
                assert!(
                    code.contains(name),
                    "{page}: `{name}` is nowhere in the code"
                );
                checked += 1;
            }
        }
    }
    assert!(checked >= 15, "{checked} names were found");
}

/// What a process remembers beside the journal may refuse or age an answer, never allow one: each field is judged.
#[test]
fn every_field_of_the_broker_is_accounted_for() {
    let code = read(&root().join("src/broker/mod.rs"));
    let body = code
        .split("pub struct Broker {")
        .nth(1)
        .expect("the struct");
    let body = body.split("\n}\n").next().expect("its end");
    let fields = body.lines().filter_map(|line| {
        let (name, _) = line.trim().split_once(": ")?;
        let plain = name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
        plain.then(|| name.to_owned())
    });
    let fields: BTreeSet<String> = fields.collect();
    assert!(fields.len() > 20, "{fields:?}");
    let page = read(&root().join("docs/invariants.md"));
    let table = page
        .split("## What this process alone remembers")
        .nth(1)
        .expect("a section");
    let rows = table.lines().filter_map(|line| line.strip_prefix("| `"));
    let named: BTreeSet<String> = rows
        .filter_map(|row| row.split(" | ").next())
        .flat_map(|cell| {
            cell.split(", ")
                .map(|name| name.trim_matches('`').to_owned())
        })
        .collect();
    assert_eq!(
        named, fields,
        "the table of docs/invariants.md beside the fields of `Broker`"
    );
}
