//! Registries: agents, people, services and profiles.

use super::*;

#[test]
fn registry_validation_errors() {
    let agents = |from: &str, to: &str| soc_with("agents.toml", from, to);
    refused(
        agents("id = \"reporter\"", "id = \"triage\""),
        "id \"triage\" is taken",
    );
    refused(
        agents("agent/reporter", "agent/triage"),
        "another agent has this spiffe_id",
    );
    refused(
        agents("\"host.isolate\"", "\"host.isolat\""),
        "action \"host.isolat\" is not in the catalogue (did you mean \"host.isolate\"?)",
    );
    refused(
        agents("owner = \"dana\"", "owner = \"dan\""),
        "(did you mean \"dana\"?)",
    );
    refused(
        agents("[[agent]]", "[[agents]]"),
        "unknown key \"agents\" (did you mean \"agent\"?)",
    );
    refused(
        agents("spiffe://soc", "spiffe://SOC"),
        "agents.toml:14: agent: spiffe_id: trust domain",
    );
    refused(
        agents("groups = [\"soc\"]", "groups = \"soc\""),
        "groups: must be a list",
    );
    refused(
        agents("model = \"example-large-2\"", "model = 2"),
        "model: must be text",
    );
    refused(agents("[[agent]]", "[agent"), "agents.toml:12: ");
    let people = |from: &str, to: &str| soc_with("people.toml", from, to);
    refused(
        people("id = \"maria\"", "id = \"lee\""),
        "id \"lee\" is taken",
    );
    refused(
        people("id = \"idp\"", "id = \"lee\""),
        "id \"lee\" is taken",
    );
    refused(
        people("method = \"key\"", "method = \"webauthn\""),
        "method: must be \"passkey\" or \"key\"",
    );
    refused(people("quorum = 2", "quorum = 21"), "quorum: must be");
    refused(people("wait = \"15m\"", "wait = \"soon\""), "wait: must be");
    refused(
        people("roles = [\"operator\"]", "roles = [\"root\"]"),
        "roles: must be",
    );
    refused(
        people("audiences = [\"https://idp.soc.example\"]", ""),
        "audiences must name at least one",
    );
    let warned = people(
        "group = \"security\"\nquorum = 2",
        "group = \"securty\"\nquorum = 2",
    )
    .expect("bundle");
    assert!(
        warned.warnings()[0]
            .message
            .contains("has 0 approvers, fewer than the quorum 2"),
        "{:?}",
        warned.warnings()
    );
}

/// The coordinates of a fresh public key.
fn point() -> (String, String) {
    let jwk = crate::jose::SigningKey::generate()
        .expect("key")
        .0
        .public()
        .to_jwk();
    let coordinate = |name: &str| jwk[name].as_str().expect("text").to_owned();
    (coordinate("x"), coordinate("y"))
}

/// p - y for the prime p of P-256 (FIPS 186-4 D.1.2.3).
fn negated(y: &str) -> String {
    let y = Digest::parse(y).expect("32 bytes");
    let mut p = [0xff; 32];
    p[4..8].copy_from_slice(&[0, 0, 0, 1]);
    p[8..20].fill(0);
    let mut borrow = 0;
    for i in (0..32).rev() {
        let difference = i32::from(p[i]) - i32::from(y.as_bytes()[i]) - borrow;
        borrow = i32::from(difference < 0);
        p[i] = u8::try_from(difference.rem_euclid(256)).expect("a byte");
    }
    Digest::from_bytes(p).to_string()
}

#[test]
fn one_key_one_person() {
    let (x, y) = point();
    let (other_x, other_y) = point();
    let key = |of: &str, x: &str, y: &str| {
        format!(
            "[[key]]\nof = \"{of}\"\njwk = {{ kty = \"EC\", crv = \"P-256\", x = \"{x}\", y = \"{y}\" }}\n"
        )
    };
    let with = |keys: &str| {
        let mut files = soc_files();
        files.get_mut("people.toml").expect("people").push_str(keys);
        load(files)
    };
    let bundle = with(&(key("maria", &x, &y) + &key("idp", &other_x, &other_y))).expect("bundle");
    let maria = bundle
        .person(&PersonId::parse("maria").expect("id"))
        .expect("person");
    assert_eq!(maria.keys[0].to_jwk()["x"], x);
    assert_eq!(
        bundle
            .service(&ServiceId::parse("idp").expect("id"))
            .expect("service")
            .keys
            .len(),
        1
    );
    refused(
        with(&(key("maria", &x, &y) + &key("lee", &x, &y))),
        "already registered for \"maria\"",
    );
    // The negated point has the same x; the holder of one key holds both.
    refused(
        with(&(key("maria", &x, &y) + &key("lee", &x, &negated(&y)))),
        "already registered for \"maria\"",
    );
    refused(with(&key("maria", &x, &other_y)), "curve");
    refused(
        with(&key("nobody", &x, &y)),
        "no person, validator or auditor",
    );
    refused(with(&key("maria", "AA", &y)), "x: must be 32 bytes");
    refused(
        with(&key("maria", &x, &y).replace("P-256", "P-384")),
        "crv: must be \"P-256\"",
    );
    let private = with(&key("maria", &x, &y).replace("x =", "d = \"ohno\", x ="))
        .expect_err("private")
        .to_string();
    assert!(
        private.contains("private part") && !private.contains("ohno"),
        "{private}"
    );
}

#[test]
fn profile_digest_covers_its_definition() {
    let digest = |bundle: &PolicyBundle, name: &str| {
        bundle
            .profile(&ProfileName::parse(name).expect("name"))
            .expect("profile")
            .digest()
    };
    let bundle = soc();
    let one = digest(&bundle, "one-security");
    assert_ne!(one, digest(&bundle, "two-security"));
    for (from, to) in [
        ("quorum = 1", "quorum = 3"),
        ("good_for = \"10m\"", "good_for = \"11m\""),
        ("wait = \"15m\"", "wait = \"16m\""),
    ] {
        assert_ne!(
            one,
            digest(
                &soc_with("people.toml", from, to).expect("bundle"),
                "one-security"
            ),
            "{to}"
        );
    }
    let same = soc_with("people.toml", "wait = \"15m\"", "wait = \"900s\"").expect("bundle");
    assert_eq!(one, digest(&same, "one-security"));
}

/// A profile asks the people whom targets name: somebody must be named, and by an attribute that targets have.
#[test]
fn people_of_targets() {
    let profile = |keys: &str| {
        let mut files = soc_files();
        let people = files.get_mut("people.toml").expect("people");
        people.push_str(&format!(
            "\n[profile.named]\n{keys}\nwait = \"15m\"\ngood_for = \"10m\"\nmethod = \"key\"\n"
        ));
        files
    };
    refused(
        load(profile("group = \"security\"\ntarget_attribute = \"name\"")),
        "group and target_attribute are two answers to who approves",
    );
    refused(
        load(profile("target_attribute = \"lead\"")),
        "profile named: no target of entities.json has the attribute \"lead\"",
    );
    // Neither a Boolean nor an entity names a person.
    for attribute in ["protected", "environment"] {
        let of = format!("target_attribute = \"{attribute}\"");
        refused(load(profile(&of)), "as a text or a set of texts");
    }
    refused(
        load(profile("target_attribute = \"of target\"")),
        "must be 1 to 64 letters",
    );
    let mut changes = profile("target_attribute = \"name\"");
    let people = changes.get_mut("people.toml").expect("people");
    people.push_str("\n[changes]\nagree = \"named\"\n");
    refused(load(changes), "a change has no target");

    // Names of things are no people.
    let bundle = load(profile("target_attribute = \"name\"")).expect("loads");
    let warned: Vec<String> = bundle.warnings().iter().map(ToString::to_string).collect();
    assert!(
        warned.iter().any(|text| text.contains(
            "names fewer approvers of people.toml than its quorum 1: what needs the profile is denied there"
        )),
        "{warned:?}"
    );

    // A case without a lead is named, where others have one.
    let mut files = profile("target_attribute = \"lead\"");
    let schema = files.get_mut("schema.cedarschema").expect("schema");
    *schema = schema.replace("entity Case = {", "entity Case = {\n  lead?: String,");
    let entities = files.get_mut("entities.json").expect("entities");
    *entities = entities.replacen("\"title\":", "\"lead\": \"lee\", \"title\":", 1);
    let bundle = load(files).expect("loads");
    let warned: Vec<String> = bundle.warnings().iter().map(ToString::to_string).collect();
    assert!(
        warned
            .iter()
            .any(|text| text.contains("of Case::INC-8850 names fewer approvers")),
        "{warned:?}"
    );
}
