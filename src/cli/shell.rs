//! Shell text: this program's name and quoted words, for commands that a person can paste.

/// The name this program was called by, quoted.
pub(super) fn program_name() -> String {
    shell_quote(
        &std::env::args()
            .next()
            .unwrap_or_else(|| "dipylon".to_owned()),
    )
}

/// One word as a POSIX shell reads it.
pub(super) fn shell_quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@%+".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shell_quoting() {
        assert_eq!(shell_quote("/home/a/x.pem"), "/home/a/x.pem");
        assert_eq!(shell_quote("/home/a b/it's"), r"'/home/a b/it'\''s'");
        assert_eq!(shell_quote("$(x)"), "'$(x)'");
    }
}
