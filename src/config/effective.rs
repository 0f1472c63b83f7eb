//! The effective configuration: every key with its value and the origin of that value.

use std::fmt;
use std::path::Path;

use toml::Value;

use super::document::{Document, matches};
use super::file::KNOWN_KEYS;
use super::{AdminAddress, Config, ConfigError, ConfigOverrides, FILE_BYTES_MAX};
use crate::keys;

/// A key of the effective configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct EffectiveSetting {
    /// Names joined by dots; an element of an array by its number, from 0.
    pub key: String,
    /// The value in effect; `None` for a key that is not set and has no default.
    pub value: Option<Value>,
    /// Where the value comes from.
    pub origin: SettingOrigin,
}

/// The origin of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SettingOrigin {
    /// This line of the file, from 1.
    Line(usize),
    /// The default of the program.
    Default,
}

impl fmt::Display for SettingOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Line(line) => write!(f, "line {line}"),
            Self::Default => f.write_str("default"),
        }
    }
}

/// The value of one key.
enum EffectiveValue {
    Set(Value),
    Unset,
    /// Not mapped below: the value of the file is shown as it is.
    Unmapped,
}

impl Config {
    /// Reads a file, and returns every known key with its effective value. No value is a secret: reading refuses those.
    /// Paths are absolute, so that the result means the same in another directory.
    pub fn read_effective(path: &Path) -> Result<(Self, Vec<EffectiveSetting>), ConfigError> {
        let text = keys::read_trusted_text(path, FILE_BYTES_MAX)?;
        let config = Self::parse(&text, path, &ConfigOverrides::default())?;
        let keys = Document::parse(&text, KNOWN_KEYS)
            .map_or_else(|_| Vec::new(), |document| document.keys());
        let raw: Value = toml::from_str(&text).unwrap_or(Value::Boolean(false));
        let mut settings = Vec::new();
        for known in KNOWN_KEYS {
            let mut found = false;
            for key in keys
                .iter()
                .filter(|key| key.leaf && matches(known.path, &key.path))
            {
                found = true;
                let name = key.path.join(".");
                let value = match config.effective_value(&name) {
                    EffectiveValue::Set(value) => Some(value),
                    EffectiveValue::Unset | EffectiveValue::Unmapped => {
                        value_at(&raw, &key.path).cloned()
                    }
                };
                settings.push(EffectiveSetting {
                    key: name,
                    value,
                    origin: SettingOrigin::Line(key.line),
                });
            }
            if !found && !known.path.contains('*') {
                let value = match config.effective_value(known.path) {
                    EffectiveValue::Set(value) => Some(value),
                    EffectiveValue::Unset | EffectiveValue::Unmapped => None,
                };
                settings.push(EffectiveSetting {
                    key: known.path.to_owned(),
                    value,
                    origin: SettingOrigin::Default,
                });
            }
        }
        Ok((config, settings))
    }

    /// The effective value of a key. A key that is not mapped here has no default: a test holds that.
    fn effective_value(&self, key: &str) -> EffectiveValue {
        let text = |text: &str| EffectiveValue::Set(Value::String(text.to_owned()));
        let seconds = |n: i64| EffectiveValue::Set(Value::String(format!("{n}s")));
        let path = |path: &Path| {
            let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
            EffectiveValue::Set(Value::String(path.to_string_lossy().into_owned()))
        };
        let number =
            |n: std::num::NonZeroU32| EffectiveValue::Set(Value::Integer(i64::from(n.get())));
        let size =
            |n: usize| EffectiveValue::Set(Value::Integer(i64::try_from(n).unwrap_or(i64::MAX)));
        let duration = |d: std::time::Duration| seconds(i64::try_from(d.as_secs()).unwrap_or(0));
        let settings = &self.settings;
        match key {
            "realm" => text(settings.realm.as_str()),
            "listen" => text(&self.listen.to_string()),
            "external_url" => text(settings.external_url.as_str()),
            "console_url" => text(settings.console_url.as_str()),
            "issuer" => text(&settings.issuer),
            "evidence_audience" => text(&settings.evidence_audience),
            "data_dir" => path(&self.data_dir),
            "key_dir" => path(&self.key_dir),
            "policy" => self.policy.as_deref().map_or(EffectiveValue::Unset, path),
            "dev" => EffectiveValue::Set(Value::Boolean(self.dev)),
            "limits.ttl_cap" => seconds(settings.ttl_cap),
            "limits.task_cap" => seconds(settings.task_cap),
            "limits.max_evidence_age" => seconds(settings.max_evidence_age),
            "tls.certificate" => self
                .tls
                .as_ref()
                .map_or(EffectiveValue::Unset, |t| path(&t.certificate)),
            "tls.key" => self
                .tls
                .as_ref()
                .map_or(EffectiveValue::Unset, |t| path(&t.key)),
            "tls_at_proxy" => EffectiveValue::Set(Value::Boolean(self.tls_at_proxy)),
            "unix_socket" => self
                .unix_socket
                .as_deref()
                .map_or(EffectiveValue::Unset, path),
            "connections.max" => size(self.connections.max),
            "connections.max_per_source" => size(self.connections.max_per_source),
            "connections.first_request_timeout" => duration(self.connections.first_request_timeout),
            "connections.idle_timeout" => duration(self.connections.idle_timeout),
            "connections.max_age" => duration(self.connections.max_age),
            "admin_listen" => match &self.admin_listen {
                None => EffectiveValue::Unset,
                Some(AdminAddress::Tcp(address)) => text(&address.to_string()),
                Some(AdminAddress::Unix(socket)) => {
                    let socket = std::path::absolute(socket).unwrap_or_else(|_| socket.clone());
                    text(&format!("unix:{}", socket.display()))
                }
            },
            "log" => text(self.log.as_str()),
            "otlp_endpoint" => self
                .otlp_endpoint
                .as_deref()
                .map_or(EffectiveValue::Unset, text),
            "rate_limits.source_per_second" => number(settings.rate_limits.source_per_second),
            "rate_limits.source_reserved_per_second" => {
                number(settings.rate_limits.source_reserved_per_second)
            }
            "rate_limits.caller_per_second" => number(settings.rate_limits.caller_per_second),
            "rate_limits.caller_reserved_per_second" => {
                number(settings.rate_limits.caller_reserved_per_second)
            }
            "rate_limits.max_concurrent_calls" => number(settings.rate_limits.max_concurrent_calls),
            "rate_limits.max_concurrent_reserved" => {
                number(settings.rate_limits.max_concurrent_reserved)
            }
            other => self
                .trust_bundle_path(other)
                .map_or(EffectiveValue::Unmapped, path),
        }
    }

    /// The file of `trust_domain.N.bundle`.
    fn trust_bundle_path(&self, key: &str) -> Option<&Path> {
        let n = key.strip_prefix("trust_domain.")?.strip_suffix(".bundle")?;
        let (_, bundle) = self.trust_domains.get(n.parse::<usize>().ok()?)?;
        Some(bundle)
    }
}

fn value_at<'a>(root: &'a Value, path: &[String]) -> Option<&'a Value> {
    path.iter().try_fold(root, |value, name| match value {
        Value::Array(items) => items.get(name.parse::<usize>().ok()?),
        Value::Table(table) => table.get(name),
        Value::String(_)
        | Value::Integer(_)
        | Value::Float(_)
        | Value::Boolean(_)
        | Value::Datetime(_) => None,
    })
}

/// The effective configuration as TOML that can be read again. Each line names the origin of its value; a key that is not
/// set is a comment.
pub fn to_toml(settings: &[EffectiveSetting]) -> String {
    let parent = |key: &str| {
        key.rsplit_once('.')
            .map_or("", |(above, _)| above)
            .to_owned()
    };
    let mut sections: Vec<String> = Vec::new();
    for setting in settings {
        let above = parent(&setting.key);
        if !sections.contains(&above) {
            sections.push(above);
        }
    }
    // Keys of the top level come first: after a section they would belong to it.
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
        let own: Vec<_> = settings
            .iter()
            .filter(|s| parent(&s.key) == *section)
            .collect();
        if !names.is_empty() {
            let comment = if own.iter().any(|setting| setting.value.is_some()) {
                ""
            } else {
                "# "
            };
            let (open, close) = if numbered { ("[[", "]]") } else { ("[", "]") };
            out.push_str(&format!("\n{comment}{open}{}{close}\n", names.join(".")));
        }
        for setting in own {
            let name = setting.key.rsplit('.').next().unwrap_or_default();
            out.push_str(&match &setting.value {
                Some(value) => {
                    format!("{:<40} # {}\n", format!("{name} = {value}"), setting.origin)
                }
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
    /// Keys without a default.
    const NO_DEFAULT: &[&str] = &[
        "policy",
        "tls.certificate",
        "tls.key",
        "unix_socket",
        "admin_listen",
        "otlp_endpoint",
    ];

    fn effective(text: &str) -> (Config, Vec<EffectiveSetting>) {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("dipylon.toml");
        std::fs::write(&path, text).expect("written");
        Config::read_effective(&path).expect("good")
    }

    /// A new key needs a value in [`Config::effective_value`], or to be named above: otherwise its default is not shown.
    #[test]
    fn every_known_key_is_shown() {
        let (config, settings) = effective(WHOLE);
        assert!(KNOWN_KEYS.len() >= 14);
        let path = |s: &EffectiveSetting| s.key.split('.').map(str::to_owned).collect::<Vec<_>>();
        for key in KNOWN_KEYS.iter().map(|known| known.path) {
            assert!(settings.iter().any(|s| matches(key, &path(s))), "{key}");
            let mapped = !matches!(config.effective_value(key), EffectiveValue::Unmapped);
            assert!(mapped || key.contains('*'), "{key} is not mapped");
            let value = settings
                .iter()
                .any(|s| matches(key, &path(s)) && s.value.is_some());
            assert!(value || NO_DEFAULT.contains(&key), "{key} shows no value");
        }
        let setting = |key: &str| {
            settings
                .iter()
                .find(|s| s.key == key)
                .expect("shown")
                .clone()
        };
        assert_eq!(setting("limits.ttl_cap").origin, SettingOrigin::Line(13));
        assert_eq!(
            setting("limits.ttl_cap").value,
            Some(Value::String("300s".into()))
        );
        assert_eq!(setting("limits.task_cap").origin, SettingOrigin::Default);
        assert_eq!(
            setting("trust_domain.1.name").origin,
            SettingOrigin::Line(10)
        );
    }

    #[test]
    fn effective_toml_roundtrip() {
        let (_, before) = effective(WHOLE);
        let text = to_toml(&before);
        let (_, after) = effective(&text);
        let values = |settings: &[EffectiveSetting]| -> Vec<_> {
            let mut all: Vec<_> = settings
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
