//! `dipylon config check` and `config show`.

use crate::support::cli_deployment::CliDeployment;

#[test]
fn config_check_reports_every_problem() {
    let site = CliDeployment::new();
    let check = |text: &str| {
        site.write("dipylon.toml", text);
        site.run(&["config", "check", "dipylon.toml"])
    };
    let good = format!("policy = \"policy\"\n{}", site.config());
    let (code, out, _) = check(&good);
    assert_eq!(code, 0, "{out}");
    assert!(
        out.contains("1 JWT-SVID keys") && out.contains("the first start creates it"),
        "{out}"
    );

    let (code, out, _) = check(&good.replace("realm", "reallm").replace("key_dir", "keydir"));
    assert_eq!(code, 1, "{out}");
    for expected in [
        "unknown key `reallm` at line 2",
        "did you mean `realm`?",
        "unknown key `keydir` at line 6",
    ] {
        assert!(out.contains(expected), "{expected}: {out}");
    }
    let (code, out, _) = check(&format!("signing_key_password = \"hunter2\"\n{good}"));
    assert_eq!(
        (code, out.contains("put it into a file")),
        (1, true),
        "{out}"
    );
    assert!(!out.contains("hunter2"), "{out}");
    let (_, _, stderr) = site.run(&["serve", "--config", "dipylon.toml"]);
    assert!(
        stderr.contains("`signing_key_password` holds a secret at line 1")
            && !stderr.contains("hunter2"),
        "{stderr}"
    );

    // Every file it names is checked, and all problems are reported at once.
    site.write("keys/token-signing.pem", &site.env.pem_of("olga"));
    site.mode("keys", 0o750);
    site.mode("keys/token-signing.pem", 0o640);
    site.write("trust.json", "{\"keys\": 1}");
    site.write("policy/people.toml", "[[person]]\n");
    let (code, out, _) = check(&good);
    assert_eq!(code, 1);
    for expected in [
        "keys: mode 750",
        "token-signing.pem: mode 640",
        "trust.json",
        "policy directory",
    ] {
        assert!(
            out.lines()
                .any(|line| line.contains(expected) && line.contains("[fail]")),
            "{expected}: {out}"
        );
    }
    site.write("dipylon.toml", &good);
    let (code, out, _) = site.run(&["config", "check", "--json", "dipylon.toml"]);
    let json: serde_json::Value = serde_json::from_str(&out).expect("json");
    assert_eq!((code, json["passed"].as_bool()), (1, Some(false)), "{json}");
    let (code, out, _) = check(&good.replace("\"keys\"", "\"data/keys\""));
    assert_eq!(
        (code, out.contains("must not be inside the data directory")),
        (1, true),
        "{out}"
    );
}

#[test]
fn config_check_compares_with_the_journal_as_the_start_does() {
    let site = CliDeployment::new();
    let start = || site.run(&["serve", "--config", "dipylon.toml", "--stop-with-stdin"]);
    let check = || site.run(&["config", "check", "dipylon.toml"]);
    assert_eq!(start().0, 0);
    let (code, out, _) = check();
    assert!(
        code == 0 && out.contains("belongs to this configuration"),
        "{out}"
    );
    let bundle = site.env.trust_bundle();
    let other = crate::support::TestEnvironment::new().trust_bundle();
    let kid = |text: &str| {
        let set: serde_json::Value = serde_json::from_str(text).expect("json");
        set["keys"][0]["kid"].as_str().expect("kid").to_owned()
    };
    let changed_key = other.replace(&kid(&other), &kid(&bundle));
    let config = site.config();
    let cases = [
        (
            config.replace("realm = \"test\"", "realm = \"other\""),
            &bundle,
            "expected a journal of realm `other`, got realm `test`",
        ),
        (
            config.clone(),
            &changed_key,
            "publish the new key under a new `kid`",
        ),
        (config.clone(), &other, ""),
    ];
    for (config, bundle, part) in cases {
        site.write("dipylon.toml", &config);
        site.write("trust.json", bundle);
        let (checked, out, _) = check();
        let (_, doctor, _) = site.run(&["doctor", "--config", "dipylon.toml"]);
        let (started, _, error) = start();
        if part.is_empty() {
            assert_eq!((checked, started), (0, 0), "{out}{error}");
            continue;
        }
        assert_eq!((checked, started), (1, 1), "{part}: {out}{error}");
        assert!(
            out.contains(part) && doctor.contains(part) && error.contains(part),
            "{part}: {out}{doctor}{error}"
        );
    }
}

#[test]
fn config_show_roundtrip() {
    let site = CliDeployment::new();
    let (code, shown, stderr) = site.run(&["config", "show", "dipylon.toml"]);
    assert_eq!(code, 0, "{stderr}");
    let line = |start: &str| {
        shown
            .lines()
            .find(|line| line.starts_with(start))
            .expect(start)
            .to_owned()
    };
    assert!(line("realm = \"test\"").ends_with("# line 1"));
    assert!(line("ttl_cap = \"900s\"").ends_with("# default"));
    assert!(line("issuer = ").contains(&site.url));
    assert!(line("data_dir = ").contains(site.root.path().to_str().expect("text")));
    site.write("elsewhere/again.toml", &shown);
    let (code, again, stderr) = site.run(&["config", "show", "elsewhere/again.toml"]);
    assert_eq!(code, 0, "{stderr}");
    let values = |text: &str| -> Vec<String> {
        text.lines()
            .map(|line| {
                line.split(" # ")
                    .next()
                    .unwrap_or_default()
                    .trim_end()
                    .to_owned()
            })
            .collect()
    };
    assert_eq!(values(&shown), values(&again));
    let (code, json, _) = site.run(&["--json", "config", "show", "dipylon.toml"]);
    let json: serde_json::Value = serde_json::from_str(&json).expect("json");
    let realm = json["keys"]
        .as_array()
        .expect("keys")
        .iter()
        .find(|k| k["key"] == "realm")
        .expect("realm");
    assert_eq!(
        (code, &realm["line"], &realm["value"]),
        (0, &1.into(), &"test".into())
    );
}
