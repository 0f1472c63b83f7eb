use std::fmt;
use std::path::Path;

use toml::Value;

use super::{Config, ConfigError, File, OperatorAddress, read_text, strict};

/// A key of the effective configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct Shown {
    /// Names joined by dots; an element of an array by its number, from 0.
    pub key: String,
    /// What the broker goes by; `None` for what is not set and has no default.
    pub value: Option<Value>,
    /// Where that comes from.
    pub origin: Origin,
}

/// Where a value comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// This line of the file, from 1.
    Line(usize),
    /// The program.
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Line(line) => write!(f, "line {line}"),
            Self::Default => f.write_str("default"),
        }
    }
}

/// What a configuration says of one key.
enum Row {
    Is(Value),
    Unset,
    /// No row: what the file says is shown as it stands.
    Unknown,
}

impl Config {
    /// Reads a file, and shows every key there is with its effective value. Values that are a secret cannot be there:
    /// reading refuses them. Paths are absolute, so that the result says the same wherever it is read.
    pub fn shown(path: &Path) -> Result<(Self, Vec<Shown>), ConfigError> {
        let text = read_text(path)?;
        let config = Self::understood(&text, path)?;
        let placed = strict::placed(&text).unwrap_or_default();
        let raw: Value = toml::from_str(&text).unwrap_or(Value::Boolean(false));
        let mut shown = Vec::new();
        for known in strict::known::<File>() {
            let mut found = false;
            for key in placed
                .iter()
                .filter(|key| key.leaf && matches(&known, &key.path))
            {
                found = true;
                let value = match config.row(&key.path) {
                    Row::Is(value) => Some(value),
                    Row::Unset | Row::Unknown => at(&raw, &key.path).cloned(),
                };
                shown.push(Shown {
                    key: key.path.clone(),
                    value,
                    origin: Origin::Line(key.line),
                });
            }
            if !found && !known.contains('*') {
                let value = match config.row(&known) {
                    Row::Is(value) => Some(value),
                    Row::Unset | Row::Unknown => None,
                };
                shown.push(Shown {
                    key: known,
                    value,
                    origin: Origin::Default,
                });
            }
        }
        Ok((config, shown))
    }

    /// The effective value of a key. A key without a row has no default: a test holds that.
    fn row(&self, key: &str) -> Row {
        let text = |text: &str| Row::Is(Value::String(text.to_owned()));
        let seconds = |n: i64| Row::Is(Value::String(format!("{n}s")));
        let path = |path: &Path| {
            let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
            Row::Is(Value::String(path.to_string_lossy().into_owned()))
        };
        let number = |n: std::num::NonZeroU32| Row::Is(Value::Integer(i64::from(n.get())));
        let size = |n: usize| Row::Is(Value::Integer(i64::try_from(n).unwrap_or(i64::MAX)));
        let duration = |d: std::time::Duration| seconds(i64::try_from(d.as_secs()).unwrap_or(0));
        let settings = &self.settings;
        match key {
            "realm" => text(settings.realm.as_str()),
            "listen" => text(&self.listen.to_string()),
            "external_url" => text(&settings.external_url),
            "console_url" => text(&settings.console_url),
            "issuer" => text(&settings.issuer),
            "evidence_audience" => text(&settings.evidence_audience),
            "data_dir" => path(&self.data_dir),
            "key_dir" => path(&self.key_dir),
            "policy" => self.policy.as_deref().map_or(Row::Unset, path),
            "dev" => Row::Is(Value::Boolean(self.dev)),
            "limits.ttl_cap" => seconds(settings.ttl_cap),
            "limits.task_cap" => seconds(settings.task_cap),
            "limits.max_evidence_age" => seconds(settings.max_evidence_age),
            "tls.certificate" => self
                .tls
                .as_ref()
                .map_or(Row::Unset, |t| path(&t.certificate)),
            "tls.key" => self.tls.as_ref().map_or(Row::Unset, |t| path(&t.key)),
            "unix_socket" => self.unix_socket.as_deref().map_or(Row::Unset, path),
            "connections.max" => size(self.connections.max),
            "connections.max_per_source" => size(self.connections.max_per_source),
            "connections.first_request" => duration(self.connections.first_request),
            "connections.idle" => duration(self.connections.idle),
            "connections.age" => duration(self.connections.age),
            "operator_listen" => match &self.operator_listen {
                None => Row::Unset,
                Some(OperatorAddress::Tcp(address)) => text(&address.to_string()),
                Some(OperatorAddress::Unix(socket)) => {
                    let socket = std::path::absolute(socket).unwrap_or_else(|_| socket.clone());
                    text(&format!("unix:{}", socket.display()))
                }
            },
            "log" => text(self.log.as_str()),
            "otlp_endpoint" => self.otlp_endpoint.as_deref().map_or(Row::Unset, text),
            "rate_limits.source_per_second" => number(settings.rate_limits.source_per_second),
            "rate_limits.source_reserved_per_second" => number(settings.rate_limits.source_reserved_per_second),
            "rate_limits.caller_per_second" => number(settings.rate_limits.caller_per_second),
            "rate_limits.caller_reserved_per_second" => number(settings.rate_limits.caller_reserved_per_second),
            "rate_limits.max_concurrent_calls" => number(settings.rate_limits.max_concurrent_calls),
            "rate_limits.max_concurrent_reserved" => number(settings.rate_limits.max_concurrent_reserved),
            other => self.domain_row(other).map_or(Row::Unknown, path),
        }
    }

    /// The file of `trust_domain.N.bundle`.
    fn domain_row(&self, key: &str) -> Option<&Path> {
        let n = key.strip_prefix("trust_domain.")?.strip_suffix(".bundle")?;
        let (_, bundle) = self.trust_domains.get(n.parse::<usize>().ok()?)?;
        Some(bundle)
    }
}

/// Whether a key is one that is known, `*` standing for any number.
fn matches(known: &str, key: &str) -> bool {
    let (mut known, mut key) = (known.split('.'), key.split('.'));
    loop {
        match (known.next(), key.next()) {
            (None, None) => return true,
            (Some("*"), Some(n)) if n.bytes().all(|b| b.is_ascii_digit()) => {}
            (Some(one), Some(other)) if one == other => {}
            (Some(_) | None, Some(_) | None) => return false,
        }
    }
}

fn at<'a>(root: &'a Value, key: &str) -> Option<&'a Value> {
    key.split('.').try_fold(root, |value, name| match value {
        Value::Array(items) => items.get(name.parse::<usize>().ok()?),
        Value::Table(table) => table.get(name),
        Value::String(_)
        | Value::Integer(_)
        | Value::Float(_)
        | Value::Boolean(_)
        | Value::Datetime(_) => None,
    })
}

/// The effective configuration as TOML that can be read again. Each line says where its value comes from; what is not set
/// stands there as a comment.
pub fn to_toml(shown: &[Shown]) -> String {
    let parent = |key: &str| {
        key.rsplit_once('.')
            .map_or("", |(above, _)| above)
            .to_owned()
    };
    let mut sections: Vec<String> = Vec::new();
    for one in shown {
        let above = parent(&one.key);
        if !sections.contains(&above) {
            sections.push(above);
        }
    }
    // Keys of no section come first, or they would belong to one.
    sections.sort_by_key(|section| !section.is_empty());
    let mut out = String::new();
    for section in &sections {
        let (mut numbered, mut names) = (false, Vec::new());
        for name in section.split('.').filter(|name| !name.is_empty()) {
            numbered = name.bytes().all(|b| b.is_ascii_digit());
            if !numbered {
                names.push(name);
            }
        }
        let own: Vec<_> = shown
            .iter()
            .filter(|s| parent(&s.key) == *section)
            .collect();
        if !names.is_empty() {
            let comment = if own.iter().any(|one| one.value.is_some()) {
                ""
            } else {
                "# "
            };
            let (open, close) = if numbered { ("[[", "]]") } else { ("[", "]") };
            out.push_str(&format!("\n{comment}{open}{}{close}\n", names.join(".")));
        }
        for one in own {
            let name = one.key.rsplit('.').next().unwrap_or_default();
            out.push_str(&match &one.value {
                Some(value) => format!("{:<40} # {}\n", format!("{name} = {value}"), one.origin),
                None => format!("# {name} is not set\n"),
            });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: &str = "realm = \"r\"\nlisten = \"127.0.0.1:7700\"\nexternal_url = \"http://127.0.0.1:7700\"\n\
        data_dir = \"data\"\nkey_dir = \"keys\"\n[[trust_domain]]\nname = \"a.example\"\nbundle = \"a.json\"\n\
        [[trust_domain]]\nname = \"b.example\"\nbundle = \"/etc/b.json\"\n[limits]\nttl_cap = \"5m\"\n";
    /// Keys that may be left out and then mean nothing.
    const NO_DEFAULT: &[&str] = &[
        "policy",
        "tls.certificate",
        "tls.key",
        "unix_socket",
        "operator_listen",
        "otlp_endpoint",
    ];

    fn shown(text: &str) -> (Config, Vec<Shown>) {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("dipylon.toml");
        std::fs::write(&path, text).expect("written");
        Config::shown(&path).expect("good")
    }

    /// A new key needs a row in [`Config::row`], or to be named above: otherwise its default is not shown.
    #[test]
    fn every_key_there_is_is_shown() {
        let (config, shown) = shown(WHOLE);
        let known = strict::known::<File>();
        assert!(known.len() >= 14, "{known:?}");
        assert!(
            known.contains(&"trust_domain.*.name".to_owned()),
            "{known:?}"
        );
        for key in &known {
            assert!(shown.iter().any(|s| matches(key, &s.key)), "{key}");
            let row = !matches!(config.row(key), Row::Unknown);
            assert!(row || key.contains('*'), "{key} has no row");
            let value = shown
                .iter()
                .any(|s| matches(key, &s.key) && s.value.is_some());
            assert!(
                value || NO_DEFAULT.contains(&key.as_str()),
                "{key} shows no value"
            );
        }
        let of = |key: &str| shown.iter().find(|s| s.key == key).expect("shown").clone();
        assert_eq!(of("limits.ttl_cap").origin, Origin::Line(13));
        assert_eq!(
            of("limits.ttl_cap").value,
            Some(Value::String("300s".into()))
        );
        assert_eq!(of("limits.task_cap").origin, Origin::Default);
        assert_eq!(of("trust_domain.1.name").origin, Origin::Line(10));
    }

    #[test]
    fn what_is_shown_can_be_read_again_and_says_the_same() {
        let (_, before) = shown(WHOLE);
        let text = to_toml(&before);
        let (_, after) = shown(&text);
        let values = |shown: &[Shown]| -> Vec<_> {
            let mut all: Vec<_> = shown
                .iter()
                .map(|s| (s.key.clone(), s.value.clone()))
                .collect();
            all.sort_by(|a, b| a.0.cmp(&b.0));
            all
        };
        assert_eq!(values(&before), values(&after), "{text}");
        assert!(
            text.contains("# policy is not set") && text.contains("# line 1"),
            "{text}"
        );
    }
}
