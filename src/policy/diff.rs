//! What differs between two policy bundles, line by line: what people agree to.

use std::collections::BTreeSet;

use similar::{ChangeTag, DiffTag, TextDiff};

use super::files::BundleFiles;
use crate::model::FileChange;

/// Every file that differs, by path, with each line that goes or comes, and the lines around it. `@` says where they begin, and inside of
/// which table or rule. Refuses files of more than 20,000 lines, in words: the
/// comparison takes their square.
pub fn file_changes(before: &BundleFiles, after: &BundleFiles) -> Result<Vec<FileChange>, String> {
    let paths = before.iter().chain(after.iter());
    let paths: BTreeSet<&str> = paths.map(|(path, _)| path).collect();
    paths
        .into_iter()
        .filter(|path| before.text(path) != after.text(path))
        .map(|path| {
            let text = |files: &'_ BundleFiles| files.text(path).unwrap_or_default().to_owned();
            let (was, is) = (text(before), text(after));
            let lines = was.lines().count().max(is.lines().count());
            if lines > LINES_MAX {
                return Err(format!(
                    "{path} has {lines} lines; files of at most {LINES_MAX} can be changed by proposal: divide it"
                ));
            }
            Ok(FileChange {
                path: path.to_owned(),
                lines: changed_lines(&was, &is),
            })
        })
        .collect()
}

/// Most lines of a file that is compared.
const LINES_MAX: usize = 20_000;

/// Lines that stay, before and after each run of lines that differ.
const CONTEXT_LINES: usize = 3;
/// Longest line that is shown whole, in bytes; of a longer pair of lines the part that differs is shown.
const LINE_BYTES_MAX: usize = 2_000;
/// What is shown of a long line before and after the part that differs, in bytes.
const AROUND_BYTES: usize = 200;

fn changed_lines(before: &str, after: &str) -> Vec<String> {
    let diff = TextDiff::from_lines(before, after);
    let new_lines: Vec<&str> = after.split_inclusive('\n').collect();
    let mut lines = Vec::new();
    for group in diff.grouped_ops(CONTEXT_LINES) {
        let start = group.first().map_or(0, |op| op.new_range().start);
        let differs = group.iter().find(|op| op.tag() != DiffTag::Equal);
        let first = differs.map_or(start, |op| op.new_range().start);
        let (before, rest) = new_lines
            .split_at_checked(first)
            .unwrap_or((&new_lines, &[]));
        let is_new = differs.is_some_and(|op| op.tag() != DiffTag::Delete);
        let within = match is_new.then(|| beginning(rest)).flatten() {
            Some(own) => own,
            None => enclosing(before),
        };
        lines.push(match within {
            Some(within) => format!("@{} in {within}", start + 1),
            None => format!("@{}", start + 1),
        });
        let changes: Vec<_> = group
            .iter()
            .flat_map(|op| diff.iter_changes(op))
            .map(|change| (change.tag(), change.value()))
            .collect();
        for (n, (tag, text)) in changes.iter().enumerate() {
            // The other line of a pair: a long line that is replaced by one.
            let other = match tag {
                ChangeTag::Delete => changes.get(n + 1).filter(|(t, _)| *t == ChangeTag::Insert),
                ChangeTag::Insert => n
                    .checked_sub(1)
                    .and_then(|n| changes.get(n))
                    .filter(|(t, _)| *t == ChangeTag::Delete),
                ChangeTag::Equal => None,
            };
            let sign = match tag {
                ChangeTag::Equal => ' ',
                ChangeTag::Delete => '-',
                ChangeTag::Insert => '+',
            };
            // The end of a line is shown, too: `\r`, and the missing one at the end of a file.
            let (text, end) = match text.strip_suffix('\n') {
                Some(text) => (text, ""),
                None => (*text, " (no end of line)"),
            };
            let shown = match (tag, other) {
                (ChangeTag::Equal, _) if text.len() > LINE_BYTES_MAX => {
                    format!("({} bytes that stay)", text.len())
                }
                (_, Some((_, other))) if text.len() > LINE_BYTES_MAX => folded(text, other),
                _ => text.to_owned(),
            };
            lines.push(format!("{sign}{shown}{end}"));
        }
    }
    lines
}

/// Whether a line begins a table, rule, action or entity.
fn begins(line: &str) -> bool {
    let line = line.trim_start();
    ["[", "@id(", "action ", "entity ", "{ \"uid\""]
        .iter()
        .any(|start| line.starts_with(start))
}

/// What these lines begin, after its annotations: nothing to be inside of where they show it themselves, and `None` where they begin
/// nothing.
fn beginning(lines: &[&str]) -> Option<Option<String>> {
    let is_annotation = |line: &&&str| line.trim_start().starts_with('@') && !begins(line);
    let annotations = lines.iter().take_while(is_annotation).count();
    let next = lines.get(annotations).filter(|line| begins(line))?;
    Some((annotations > 0).then(|| next.trim().to_owned()))
}

/// The table, rule, action or entity that a place in a file is inside of: the last line before it that begins one, with the line that
/// names it.
fn enclosing(before: &[&str]) -> Option<String> {
    let at = before.iter().rposition(|line| begins(line))?;
    let (heading, rest) = before.get(at..)?.split_first()?;
    let names = |line: &&&str| {
        ["id =", "of =", "id=", "of="]
            .iter()
            .any(|name| line.trim_start().starts_with(name))
    };
    let name = rest
        .iter()
        .take_while(|line| !line.trim().is_empty())
        .find(names);
    let name = name
        .map(|line| format!(" {}", line.trim()))
        .unwrap_or_default();
    Some(format!("{}{name}", heading.trim()))
}

/// The part of a long line in which it differs from another, with how much of it is the same before and after.
fn folded(line: &str, other: &str) -> String {
    let same = |one: &mut dyn Iterator<Item = (char, char)>| -> usize {
        one.take_while(|(a, b)| a == b)
            .map(|(a, _)| a.len_utf8())
            .sum()
    };
    let head = same(&mut line.chars().zip(other.chars()));
    let rest = line.get(head..).unwrap_or_default();
    let other = other.trim_end_matches('\n').get(head..).unwrap_or_default();
    let tail = same(&mut rest.chars().rev().zip(other.chars().rev()));
    // With what stands around it: the names before a value, the end of it.
    let around = |at: usize| line.floor_char_boundary(at);
    let from = around(head.saturating_sub(AROUND_BYTES));
    let to = line.ceil_char_boundary((line.len() - tail + AROUND_BYTES).min(line.len()));
    let middle = line.get(from..to).unwrap_or(line);
    format!(
        "({from} bytes that stay){middle}({} bytes that stay)",
        line.len() - to
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_changed_line_is_listed_with_its_place() {
        let lines = changed_lines("a\nb\nc\nd\n", "a\nB\nc\nd\ne");
        assert_eq!(
            lines,
            ["@1", " a", "-b", "+B", " c", " d", "+e (no end of line)"]
        );
        assert_eq!(changed_lines("", "x\n"), ["@1", "+x"]);
        assert_eq!(changed_lines("x\r\n", "x\n"), ["@1", "-x\r", "+x"]);
        let table = |quorum: u32| format!("[profile.two]\n1\n2\n3\n4\nquorum = {quorum}\n");
        assert_eq!(
            changed_lines(&table(2), &table(1)),
            [
                "@3 in [profile.two]",
                " 2",
                " 3",
                " 4",
                "-quorum = 2",
                "+quorum = 1"
            ]
        );
    }

    #[test]
    fn a_change_is_placed_in_what_it_is_of() {
        let place = |before: &str, after: &str| changed_lines(before, after).swap_remove(0);
        let action = |title: &str| {
            format!("action \"a\";\n\n\n\n\n@title(\"{title}\")\n@risk(\"low\")\naction \"b\";\n")
        };
        // An annotation is of what follows.
        assert_eq!(place(&action("x"), &action("y")), "@3 in action \"b\";");
        // What begins a table is in no other.
        let table = "[one]\na = 1\nb = 2\nc = 3\nd = 4\n";
        assert_eq!(place(table, &format!("{table}[two]\n")), "@3");
        // What goes was in the one before.
        let both = format!("{table}e = 5\n[two]\n");
        assert_eq!(place(&both, &format!("{table}[two]\n")), "@3 in [one]");
    }

    #[test]
    fn files_that_take_too_long_to_compare_are_refused() {
        let files = |lines: usize| {
            let text = |path: &str| (path.to_owned(), "#\n".repeat(lines));
            let paths = [
                "agents.toml",
                "entities.json",
                "people.toml",
                "rules/1.cedar",
                "schema.cedarschema",
            ];
            BundleFiles::new(paths.map(text).into_iter().collect()).expect("files")
        };
        assert!(file_changes(&files(1), &files(2)).is_ok());
        let why = file_changes(&files(1), &files(LINES_MAX + 1)).expect_err("too long");
        assert!(why.contains("agents.toml has 20001 lines"), "{why}");
    }

    #[test]
    fn a_long_line_shows_where_it_differs() {
        let line = |mid: &str| format!("{}{mid}{}\n", "a".repeat(3_000), "z".repeat(10));
        assert_eq!(
            changed_lines(&line("one"), &line("two")),
            [
                "@1".to_owned(),
                format!(
                    "-(2800 bytes that stay){}one{}(0 bytes that stay)",
                    "a".repeat(200),
                    "z".repeat(10)
                ),
                format!(
                    "+(2800 bytes that stay){}two{}(0 bytes that stay)",
                    "a".repeat(200),
                    "z".repeat(10)
                ),
            ]
        );
    }
}
