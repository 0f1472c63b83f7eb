//! Places inside the text of a rule, for messages.

/// The offset of each condition: its `when` or `unless`, in their order.
pub(super) fn conditions(text: &str) -> Vec<usize> {
    let mut found = Vec::new();
    let mut depth = 0_usize;
    for (at, word) in words(text) {
        match word {
            "(" | "{" | "[" => depth = depth.saturating_add(1),
            ")" | "}" | "]" => depth = depth.saturating_sub(1),
            "when" | "unless" if depth == 0 => found.push(at),
            _ => {}
        }
    }
    found
}

/// The offset of an entity `KIND::"ID"`.
pub(super) fn entity(text: &str, kind: &str, id: &str) -> Option<usize> {
    let words: Vec<(usize, &str)> = words(text).collect();
    let literal = quoted(id);
    words.windows(4).find_map(|four| match four {
        [(at, name), (_, ":"), (_, ":"), (_, text)] if *name == kind && *text == literal => {
            Some(*at)
        }
        _ => None,
    })
}

/// The offset of a text literal inside a condition, counted from 0.
pub(super) fn literal(text: &str, value: &str, condition: usize) -> Option<usize> {
    let from = conditions(text).get(condition).copied()?;
    let literal = quoted(value);
    let mut found = words(text).filter(|(at, word)| *at >= from && *word == literal);
    found.next().map(|(at, _)| at)
}

/// The offset of a word, or of a text literal of it, from an offset on.
pub(super) fn member(text: &str, name: &str, from: usize) -> Option<usize> {
    let literal = quoted(name);
    let mut found =
        words(text).filter(|(at, word)| *at >= from && (*word == name || *word == literal));
    found.next().map(|(at, _)| at)
}

/// The offset of an annotation.
pub(in crate::policy) fn annotation(text: &str, name: &str) -> Option<usize> {
    let words: Vec<(usize, &str)> = words(text).collect();
    words.windows(2).find_map(|two| match two {
        [(at, "@"), (_, word)] if *word == name => Some(*at),
        _ => None,
    })
}

fn quoted(value: &str) -> String {
    format!("\"{}\"", value.escape_debug())
}

/// Words, text literals with their quotes, and single other characters, each with its offset; without comments and blanks.
pub(in crate::policy) fn words(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut rest = 0;
    std::iter::from_fn(move || {
        loop {
            let tail = text.get(rest..)?;
            let first = tail.chars().next()?;
            let at = rest;
            let length = if tail.starts_with("//") {
                rest += tail.find('\n').unwrap_or(tail.len());
                continue;
            } else if first.is_whitespace() {
                rest += first.len_utf8();
                continue;
            } else if first == '"' {
                literal_length(tail)
            } else if first.is_alphanumeric() || first == '_' {
                tail.find(|c: char| !(c.is_alphanumeric() || c == '_'))
                    .unwrap_or(tail.len())
            } else {
                first.len_utf8()
            };
            rest += length;
            return Some((at, text.get(at..rest)?));
        }
    })
}

/// The length of the text literal that the text begins with.
fn literal_length(text: &str) -> usize {
    let mut is_escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            '"' if !is_escaped => return at + 1,
            '\\' => is_escaped = !is_escaped,
            _ => is_escaped = false,
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_in_a_rule() {
        let text = "@id(\"when\") // when\nforbid (principal, action, resource == Account::\"ann\")\nwhen { resource.kind == \"db\" } unless { true };";
        let at = conditions(text);
        assert_eq!(at.len(), 2);
        assert!(text[at[0]..].starts_with("when { resource"));
        assert!(text[at[1]..].starts_with("unless"));
        assert!(text[entity(text, "Account", "ann").expect("found")..].starts_with("Account"));
        assert!(text[literal(text, "db", 0).expect("found")..].starts_with("\"db\""));
        assert_eq!(literal(text, "when", 0), None);
        assert_eq!(literal(text, "db", 1), None);
        assert_eq!(annotation(text, "id"), Some(0));
    }
}
