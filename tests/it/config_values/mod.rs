//! Values of the configuration: each wrong one is refused with its file, line and key, and `serve` and `config check` refuse
//! the same configurations.

mod cases;

use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::Path;

use dipylon::config::Config;

use crate::support::cli_deployment::CliDeployment;
use cases::CASES;

/// Every key with a good value, in TOML; one key on each line.
const KEYS: &[(&str, &str, Kind)] = &[
    ("realm", "\"r\"", Kind::Text),
    ("listen", "\"127.0.0.1:7700\"", Kind::Text),
    ("external_url", "\"https://b.example\"", Kind::Text),
    ("console_url", "\"https://c.example\"", Kind::Text),
    ("issuer", "\"https://b.example\"", Kind::Text),
    ("evidence_audience", "\"https://b.example\"", Kind::Text),
    ("data_dir", "\"data\"", Kind::Path),
    ("key_dir", "\"keys\"", Kind::Path),
    ("policy", "\"policy\"", Kind::Path),
    ("dev", "false", Kind::Bool),
    ("admin_listen", "\"127.0.0.1:9100\"", Kind::Text),
    ("log", "\"text\"", Kind::Text),
    ("tls_at_proxy", "false", Kind::Bool),
    ("unix_socket", "\"s\"", Kind::Path),
    ("rate_limits.source_per_second", "1", Kind::Integer),
    ("rate_limits.source_reserved_per_second", "1", Kind::Integer),
    ("rate_limits.caller_per_second", "1", Kind::Integer),
    ("rate_limits.caller_reserved_per_second", "1", Kind::Integer),
    ("rate_limits.max_concurrent_calls", "1", Kind::Integer),
    ("rate_limits.max_concurrent_reserved", "1", Kind::Integer),
    ("limits.ttl_cap", "\"1m\"", Kind::Text),
    ("limits.task_cap", "\"1m\"", Kind::Text),
    ("limits.max_evidence_age", "\"1m\"", Kind::Text),
    ("tls.certificate", "\"c\"", Kind::Path),
    ("tls.key", "\"k\"", Kind::Path),
    ("connections.max", "9", Kind::Integer),
    ("connections.max_per_source", "9", Kind::Integer),
    ("connections.first_request_timeout", "\"1s\"", Kind::Text),
    ("connections.idle_timeout", "\"1s\"", Kind::Text),
    ("connections.max_age", "\"1s\"", Kind::Text),
    ("trust_domain.0.name", "\"a.example\"", Kind::Text),
    ("trust_domain.0.bundle", "\"a.json\"", Kind::Path),
];

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Text,
    Path,
    Bool,
    Integer,
}

/// A configuration with every key, one of them with another value; and the line of that key.
fn with(key: &str, value: &str) -> (String, usize) {
    let (mut text, mut section, mut line) = (String::new(), "", 0);
    let put = |text: &mut String, next: &str| {
        text.push_str(next);
        text.push('\n');
    };
    for (known, good, _) in KEYS {
        let (above, name) = known.rsplit_once('.').unwrap_or(("", known));
        if above != section {
            section = above;
            let header = match above.split_once('.') {
                Some((array, _)) => format!("[[{array}]]"),
                None => format!("[{above}]"),
            };
            put(&mut text, &header);
        }
        let chosen = if *known == key { value } else { good };
        put(&mut text, &format!("{name} = {chosen}"));
        if *known == key {
            line = text.lines().count();
        }
    }
    (text, line)
}

fn read(dir: &Path, text: &str) -> Result<Config, String> {
    let file = dir.join("dipylon.toml");
    std::fs::write(&file, text).expect("written");
    Config::read(&file).map_err(|error| error.to_string())
}

#[test]
fn wrong_values_name_file_line_key_and_what_was_expected() {
    let dir = tempfile::tempdir().expect("dir");
    read(dir.path(), &with("", "").0).expect("every key with a good value");
    let huge = format!("\"{}\"", "x".repeat(5_000));
    let mut refused = 0;
    for (key, _, kind) in KEYS {
        let wrong: &[&str] = &[
            "true",
            "0",
            "-1",
            "1.5",
            "99999999999999999999",
            "[]",
            "[1]",
            "{ x = 1 }",
            "1979-05-27",
            "\"\"",
            "\"a\\u0000b\"",
            "\" \\u001b[31m\"",
            &huge,
            "\"https://u:hunter2@x\"",
        ];
        for value in wrong {
            let is_text = value.starts_with('"');
            // A path may hold whatever a file name may; what is no TOML has no key.
            let good = match kind {
                Kind::Bool => *value == "true" && *key == "dev",
                Kind::Path => is_text && (value.contains("u001b") || value.contains('@')),
                Kind::Text => ["issuer", "evidence_audience"].contains(key) && value.contains('@'),
                Kind::Integer => false,
            };
            let contradiction = *key == "tls_at_proxy" && *value == "true";
            if good || contradiction || value.len() == 20 {
                continue;
            }
            let (text, line) = with(key, value);
            let error = read(dir.path(), &text).expect_err(&format!("{key} = {value}"));
            let start = format!("{}: `{key}`: ", dir.path().join("dipylon.toml").display());
            let named = error.lines().find(|problem| problem.starts_with(&start));
            let named = named.unwrap_or_else(|| panic!("{key} = {value:.60}: {error}"));
            assert!(
                named.contains(&format!(" at line {line}")),
                "{key} = {value:.60}: {error}"
            );
            assert!(named.contains(", got "), "{key} = {value:.60}: {error}");
            let states = [
                "expected ",
                "a URL must ",
                "a trust domain must",
                "a realm must",
            ];
            assert!(
                states.iter().any(|states| named.contains(states)),
                "{key} = {value:.60}: {error}"
            );
            assert!(
                !error.contains("hunter2") && error.len() < 1_000,
                "{key} = {value:.60}: {error}"
            );
            assert!(
                !error.contains(['\0', '\u{1b}']),
                "{key} = {value:.60}: {error}"
            );
            for word in ["invalid type", "serde", "nonzero", "variant"] {
                assert!(!error.contains(word), "{key} = {value:.60}: {error}");
            }
            refused += 1;
        }
    }
    assert!(refused > 300, "{refused}");
}

#[test]
fn urls_have_one_spelling() {
    let dir = tempfile::tempdir().expect("dir");
    let external = |value: &str| {
        let text = with("external_url", value)
            .0
            .replace("console_url = \"https://c.example\"\n", "");
        read(
            dir.path(),
            &text.replace("issuer = \"https://b.example\"\n", ""),
        )
    };
    for value in [
        "\"https://b.example\"",
        "\"https://B.Example:443\"",
        "\"HTTPS://b.example/\"",
        "\"https://b.example:\"",
    ] {
        let settings = external(value).expect(value).settings;
        assert_eq!(
            settings.external_url.as_str(),
            "https://b.example",
            "{value}"
        );
        assert_eq!(
            settings.console_url.as_str(),
            "https://b.example",
            "{value}"
        );
        assert_eq!(settings.issuer, "https://b.example", "{value}");
        assert_eq!(settings.relying_party().id, "b.example");
    }
    for (value, part) in [
        ("\"https://b.example:0443\"", "write https://b.example"),
        ("\"https://b.example:99999\"", "a port from 1 to 65535"),
        ("\"https://b.example.\"", "write b.example"),
        ("\"https://u@b.example\"", "no user name or password"),
        ("\"https://b.example/x\"", "write https://b.example"),
        ("\"https://b.example?x\"", "write https://b.example"),
    ] {
        for key in ["external_url", "console_url"] {
            let error = read(dir.path(), &with(key, value).0).expect_err(value);
            assert!(
                error.contains(part) && error.contains(key),
                "{value}: {error}"
            );
        }
    }
    let ip = read(dir.path(), &with("console_url", "\"https://[::1]\"").0).expect_err("an address");
    assert!(
        ip.contains("a passkey cannot belong to an IP address"),
        "{ip}"
    );
}

#[test]
fn serve_and_config_check_refuse_the_same_configurations() {
    let site = CliDeployment::new();
    site.write("open.json", &site.env.trust_bundle());
    site.mode("open.json", 0o666);
    std::fs::create_dir(site.path("open")).expect("dir");
    site.mode("open", 0o777);
    let port = site.port.to_string();
    let good = site.config();
    let long = "x".repeat(90);
    let filled = |text: &str| text.replace("PORT", &port).replace("LONG", &long);
    for (n, (from, to, part)) in CASES.iter().enumerate() {
        let (from, to) = (filled(from), filled(to));
        assert!(good.contains(&from), "{from}\n{good}");
        let file = format!("case{n}.toml");
        site.write(&file, &good.replacen(&from, &to, 1));
        let (checked, out, _) = site.run(&["config", "check", &file]);
        // Ends at once where it starts: stdin is empty.
        let (served, _, error) = site.run(&["serve", "--config", &file, "--stop-with-stdin"]);
        if part.is_empty() {
            // A journal with a policy bundle would make an unusable policy directory a warning.
            std::fs::remove_dir_all(site.path("data")).expect("created");
            assert_eq!((checked, served), (0, 0), "{to}: {out}{error}");
            continue;
        }
        assert_eq!((checked, served), (1, 1), "{to}: {out}{error}");
        let failed = |line: &str| line.contains(part) && line.contains("[fail]");
        assert!(out.lines().any(failed), "{to}: {part}: {out}");
        assert!(
            error.contains(part) && error.contains(&file),
            "{to}: {part}: {error}"
        );
    }
}

#[test]
fn command_line_values_are_checked_like_the_files() {
    let site = CliDeployment::new();
    let serve = |more: &[&str]| {
        let mut args = vec!["serve", "--config", "dipylon.toml", "--stop-with-stdin"];
        args.extend(more);
        site.run(&args)
    };
    for (more, part) in [
        (
            ["--listen", "0.0.0.0:1"],
            "`--listen`: expected a loopback address",
        ),
        (["--data-dir", "trust.json"], "expected a directory"),
        (["--policy", "none"], "policy directory none"),
        (
            ["--url", "http://x"],
            "--url has no effect on 'dipylon serve'",
        ),
        (["--ca", "x"], "--ca has no effect"),
        (["--socket", "x"], "--socket has no effect"),
        (
            ["--dev-dir", "x"],
            "--dev-dir has no effect on 'dipylon serve' with --config",
        ),
    ] {
        let (code, _, error) = serve(&more);
        assert!(
            code != 0 && error.contains(part),
            "{more:?}: {code} {error}"
        );
    }
    let dev = ["serve", "--dev", "--data-dir", "dev", "--stop-with-stdin"];
    let with = |more: &[&str]| site.run(&[&dev, more].concat());
    for (more, part) in [
        (["--url", "http://x"], "--url has no effect"),
        (
            ["--dev-dir", "x"],
            "--dev-dir has no effect on 'dipylon serve' with --data-dir",
        ),
    ] {
        let (code, _, error) = with(&more);
        assert!(
            code == 2 && error.contains(part),
            "{more:?}: {code} {error}"
        );
        assert!(!site.path("dev").exists(), "{more:?}");
    }
}

#[test]
fn options_without_effect_are_refused_and_variables_are_not() {
    let site = CliDeployment::new();
    for verb in [
        &["config", "check", "dipylon.toml"][..],
        &["config", "show", "dipylon.toml"],
        &["policy", "check", "policy"],
        &["key", "show", "--key", "olga.pem", "--of", "olga"],
        &["audit", "verify", "--data-dir", "data"],
        &["doctor", "--config", "dipylon.toml"],
    ] {
        let (code, _, error) = site.run(&[verb, &["--url", "http://127.0.0.1:1"]].concat());
        assert!(
            code == 2 && error.contains("--url has no effect"),
            "{verb:?}: {error}"
        );
        let out = std::process::Command::new(env!("CARGO_BIN_EXE_dipylon"))
            .args(verb)
            .current_dir(site.root.path())
            .env("DIPYLON_URL", "http://127.0.0.1:1")
            .output()
            .expect("runs");
        assert_ne!(out.status.code(), Some(2), "{verb:?}: {out:?}");
    }
}

#[test]
fn options_that_another_one_overrides_are_refused() {
    let site = CliDeployment::new();
    let cancel = ["exec", "--cancel", "areq_AAAAAAAAAAAAAAAAAAAAAA"];
    let dev_dir = ["--dev-dir", "dev"];
    for (verb, more, part) in [
        (
            &["audit", "verify", "--config", "dipylon.toml"][..],
            &dev_dir[..],
            "--dev-dir has no effect on 'dipylon audit verify' with --config",
        ),
        (
            &["audit", "verify", "--data-dir", "data"],
            &dev_dir,
            "--dev-dir has no effect on 'dipylon audit verify' with --data-dir",
        ),
        (
            &["config", "show", "dipylon.toml"],
            &dev_dir,
            "--dev-dir has no effect on 'dipylon config show' with a FILE",
        ),
        (&cancel, &["--deliver", "fd"], "--deliver"),
        (&cancel, &["--audience-url", "http://x"], "--audience-url"),
        (&cancel, &["--audience-ca", "x"], "--audience-ca"),
        (&cancel, &["--insecure-audience"], "--insecure-audience"),
        (&cancel, &["--forward-header", "x"], "--forward-header"),
        (&cancel, &["--end-signal", "int"], "--end-signal"),
    ] {
        let (code, _, error) = site.run(&[verb, more].concat());
        assert!(
            code != 0 && error.contains(part),
            "{verb:?} {more:?}: {code} {error}"
        );
        // The same in the environment is there for other commands.
        let out = std::process::Command::new(env!("CARGO_BIN_EXE_dipylon"))
            .args(verb)
            .current_dir(site.root.path())
            .env("DIPYLON_DEV", "dev")
            .output()
            .expect("runs");
        let error = String::from_utf8_lossy(&out.stderr);
        assert!(!error.contains(part), "{verb:?}: {error}");
    }
}

#[test]
fn an_empty_variable_is_an_unset_one() {
    let site = CliDeployment::new();
    let out = std::process::Command::new(env!("CARGO_BIN_EXE_dipylon"))
        .args(["serve", "--dev", "--stop-with-stdin"])
        .current_dir(site.root.path())
        .env("HOME", site.path("home"))
        .envs(["DIPYLON_LOG", "NOTIFY_SOCKET"].map(|name| (name, "")))
        .stdin(std::process::Stdio::null())
        .output()
        .expect("runs");
    let error = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(0), "{error}");
    assert!(
        site.path("home/.dipylon/dev/dipylon.toml").exists(),
        "{error}"
    );
}

#[test]
fn files_of_other_users_are_refused_and_reported() {
    let site = CliDeployment::new();
    let config = format!("policy = \"policy\"\n{}", site.config());
    site.write("dipylon.toml", &config);
    let start = || site.run(&["serve", "--config", "dipylon.toml", "--stop-with-stdin"]);
    assert_eq!(start().0, 0);
    std::fs::remove_dir_all(site.path("data")).expect("removed");
    let doctor = || site.run(&["doctor", "--config", "dipylon.toml"]);
    assert_eq!(doctor().0, 0, "{}", doctor().1);
    let refused = |what: &str, expected: &str| {
        let (code, _, error) = start();
        assert!(
            code == 1 && error.contains(expected),
            "{what}: {code} {error}"
        );
        for (code, out, _) in [doctor(), site.run(&["config", "check", "dipylon.toml"])] {
            let failed = |line: &str| line.contains("[fail]") && line.contains(expected);
            assert!(code == 1 && out.lines().any(failed), "{what}: {out}");
        }
    };
    for (what, mode) in [
        ("dipylon.toml", 0o666),
        ("trust.json", 0o666),
        ("policy", 0o777),
        ("policy/rules", 0o777),
        ("policy/people.toml", 0o646),
        ("keys", 0o777),
        ("keys/token-signing.pem", 0o644),
        (".", 0o777),
    ] {
        let path = site.path(what);
        let before = std::fs::metadata(&path).expect("there").permissions();
        site.mode(what, mode);
        refused(what, &format!("mode {mode:03o}"));
        std::fs::set_permissions(&path, before).expect("restored");
    }
    // Only root can give files away.
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("skipped: owners of files are checked as root only");
        return;
    }
    for what in [
        "dipylon.toml",
        "trust.json",
        "policy",
        "policy/people.toml",
        "keys",
        "keys/token-signing.pem",
        ".",
    ] {
        let path = site.path(what);
        chown(&path, Some(65_534), None).expect("given away");
        refused(what, "got user 65534");
        chown(&path, Some(0), None).expect("restored");
    }
    let mode = std::fs::metadata(site.path("keys"))
        .expect("there")
        .permissions()
        .mode();
    assert_eq!((mode & 0o777, start().0), (0o700, 0));
}

#[test]
fn clients_and_browsers_reach_a_url_in_every_spelling() {
    let site = CliDeployment::new();
    let port = site.port;
    let config = site.config().replace(
        &format!("external_url = \"{}\"", site.url),
        &format!("external_url = \"HTTP://LocalHost:{port}/\""),
    );
    assert!(config.contains("LocalHost"), "{config}");
    site.write("dipylon.toml", &config);
    let running = site.serve();
    let code = running.code().expect("printed");
    // The client writes the URL into its proofs as it was given.
    let url = format!("http://LOCALHOST:{port}");
    let apply = [
        "policy", "apply", "policy", "--url", &url, "--key", "olga.pem", "--code", &code,
    ];
    let (applied, out, error) = site.run(&apply);
    assert_eq!(applied, 0, "{out}{error}");
    for (host, expected) in [
        (format!("localhost:{port}"), true),
        (format!("LOCALHOST:{port}"), true),
        (format!("127.0.0.1:{port}"), false),
        ("localhost".to_owned(), false),
    ] {
        let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).expect("connects");
        let request = format!("GET /console HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
        std::io::Write::write_all(&mut stream, request.as_bytes()).expect("sent");
        let mut answer = String::new();
        std::io::Read::read_to_string(&mut stream, &mut answer).expect("read");
        let status = answer.split(' ').nth(1).unwrap_or_default();
        assert_eq!(status != "421", expected, "{host}: {answer:.80}");
    }
}

#[test]
fn policy_check_refuses_ids_that_differ_in_normalization_alone() {
    let site = CliDeployment::new();
    let target = |id: &str| {
        format!(
            "{{ \"uid\": {{ \"type\": \"Account\", \"id\": \"{id}\" }}, \"parents\": [], \"attrs\": {{ \"name\": \"x\", \
             \"environment\": {{ \"type\": \"Environment\", \"id\": \"prod\" }}, \"protected\": false }} }},"
        )
    };
    let entities = &site.env.policy["entities.json"];
    let both = target("jos\u{e9}") + &target("jose\u{301}");
    site.write(
        "policy/entities.json",
        &entities.replacen('[', &format!("[{both}"), 1),
    );
    let (code, error, _) = site.run(&["policy", "check", "policy"]);
    assert_eq!(code, 1);
    assert!(
        error.contains("entities.json") && error.contains("U+0065 U+0301"),
        "{error}"
    );
    assert!(error.contains("U+00E9"), "{error}");
}
