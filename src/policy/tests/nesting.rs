//! Texts that nest too deep for the stack of a reader.

use super::*;

/// Runs in a thread with the stack of a worker of the broker, less 256 KiB for its caller; an overflow would end the process.
fn on_worker_stack<T: Send + 'static>(run: impl FnOnce() -> T + Send + 'static) -> T {
    let thread = std::thread::Builder::new().stack_size(7 << 18);
    thread
        .spawn(run)
        .expect("a thread")
        .join()
        .expect("no panic")
}

/// The soc bundle with one more file of rules.
fn with_rules(rules: &str) -> BTreeMap<String, String> {
    let mut files = soc_files();
    files.insert("rules/30-more.cedar".to_owned(), rules.to_owned());
    files
}

fn condition(condition: &str) -> BTreeMap<String, String> {
    with_rules(&format!(
        "@id(\"a\")\nforbid (principal, action == Action::\"case.note\", resource)\nwhen {{ {condition} }};"
    ))
}

/// The soc bundle with more text in one file.
fn with_more(path: &str, more: &str) -> BTreeMap<String, String> {
    let mut files = soc_files();
    files.get_mut(path).expect("a file").push_str(more);
    files
}

fn refused_on_worker_stack(files: BTreeMap<String, String>, part: &'static str) {
    let checked = files.clone();
    refused(on_worker_stack(move || load(files)), part);
    let checked = on_worker_stack(move || PolicyBundle::load_checked(&BundleFiles::new(checked)?));
    refused(checked, part);
}

const READ: &str = "context.ttl > duration(\"1m\")";

#[test]
fn deep_rules_are_refused() {
    let operators = "a rule has more than 24 operators";
    let brackets = "a rule has brackets nested more than 16 deep";
    for (of, part) in [
        (vec![READ; 200].join(" || "), operators),
        (vec![READ; 20_000].join(" && "), operators),
        (
            format!(
                "{}true{}",
                "if true then ".repeat(200),
                " else false".repeat(200)
            ),
            operators,
        ),
        (
            format!("context.task.depth{} > 0", " + 1".repeat(3_000)),
            operators,
        ),
        (
            format!("context.task.depth{} > 0", " * 2".repeat(3_000)),
            operators,
        ),
        (
            format!("{}true{}", "(".repeat(9_000), ")".repeat(9_000)),
            brackets,
        ),
        (
            format!("{}1{} == 1", "[".repeat(9_000), "]".repeat(9_000)),
            brackets,
        ),
        (
            format!("{}1{} == 1", "{a:".repeat(9_000), "}".repeat(9_000)),
            brackets,
        ),
        (
            format!("{}true{}", "!(".repeat(9_000), ")".repeat(9_000)),
            brackets,
        ),
        (format!("context{} > 0", ".a".repeat(9_000)), "records deep"),
        (
            format!("context{} > 0", "[\"a\"]".repeat(9_000)),
            "records deep",
        ),
        (
            format!("(((context{0}){0}){0}) > 0", ".a".repeat(9)),
            "records deep",
        ),
        (
            format!("context has a{}", ".a".repeat(9_000)),
            "records deep",
        ),
        (
            format!("context.ttl{} > 0", ".toDays()".repeat(9_000)),
            "more than 8 records deep",
        ),
        // What closes another bracket leaves the outer ones open.
        (format!("{}1", "(]".repeat(9_000)), brackets),
        (format!("{}1", "{)".repeat(9_000)), brackets),
        (format!("{}true", "!".repeat(9_000)), operators),
        (
            format!("{}context.task.depth > 0", "-".repeat(9_000)),
            operators,
        ),
        (vec!["1"; 30].join(" - ") + " == 1", operators),
    ] {
        refused_on_worker_stack(condition(&of), part);
    }
    let conditions = format!(" when {{ {READ} }}").repeat(200);
    let many = format!("@id(\"a\") forbid (principal, action, resource){conditions};");
    refused_on_worker_stack(with_rules(&many), operators);
    let scope = format!(
        "@id(\"a\") forbid (principal == {}true{}, action, resource);",
        "(".repeat(9_000),
        ")".repeat(9_000)
    );
    refused_on_worker_stack(with_rules(&scope), brackets);
    refused(
        load(condition(&vec![READ; 25].join(" || "))),
        "rules/30-more.cedar:3:",
    );
}

/// What is within the bounds is read, checked, decided by and dropped, with the stack of a worker.
#[test]
fn the_deepest_rules_decide() {
    let note = "context.parameters.text";
    // The condition is an operator, too.
    let disjunction = vec![format!("{note} == \"a\""); 24].join(" || ");
    let negated = format!("{}{note} == \"a\"{}", "!(".repeat(14), ")".repeat(14));
    let nested = format!(
        "{}{note} == \"a\"{}",
        "(if context.target_known then true else ".repeat(15),
        ")".repeat(15)
    );
    let sum = format!("context.task.depth{} > 0", " + 1".repeat(22));
    // Of these only `&&` and `when` are operators.
    let compared = vec![format!("{note} != \"a\""); 24].join(" && ");
    let numbers = format!(
        "[{}].contains(context.task.depth)",
        vec!["-1"; 40].join(", ")
    );
    // As deep as the deepest of its sides.
    let sides =
        "(context.task.depth == context.task.depth) == (context.task.depth == context.task.depth)";
    let sides = format!("{sides} && ({sides})");
    for of in [disjunction, negated, nested, sum, compared, numbers, sides] {
        let permit = format!(
            "@id(\"b\") permit (principal, action == Action::\"case.note\", resource) when {{ {of} }};"
        );
        on_worker_stack(move || {
            let permits = load(with_rules(&permit)).unwrap_or_else(|e| panic!("{permit}: {e}"));
            let bundle = load(condition(&of)).unwrap_or_else(|e| panic!("{of}: {e}"));
            let checked =
                PolicyBundle::load_checked(&BundleFiles::new(condition(&of)).expect("files"));
            drop(checked);
            assert!(!bundle.asking_agents().is_empty());
            let rule = bundle.rules.conditions("a");
            assert!(!rule.is_empty());
            let agent = bundle
                .agent(&AgentId::parse("triage").expect("id"))
                .expect("agent");
            let action = super::note();
            let request = AuthzRequest {
                agent: &agent,
                action: &action,
                ttl_ms: 60_000,
                approvals: &BTreeSet::new(),
                evidence_kind: EvidenceKind::JwtSvid,
                evidence_ages: EvidenceAges::ZERO,
                binding: "jkt",
                task_age_ms: 0,
                task_depth: 0,
                waited_ms: 0,
                now: Timestamp::from_millis(0),
                executor: None,
                facts: &crate::model::FactValues::new(),
                counts: &crate::model::CountValues::new(),
            };
            let decision = bundle.authorize(&request);
            let nearest = permits.nearest_permit(&request);
            drop(nearest);
            // Evaluated, whatever it says.
            let failed = matches!(
                decision,
                AuthzDecision::Denied {
                    why: DeniedReason::RuleEvaluationFailed,
                    ..
                }
            );
            assert!(!failed, "{of}: {decision:?}");
        });
    }
}

#[test]
fn deep_schemas_are_refused() {
    let schema = "schema.cedarschema";
    let nested = "types are nested more than 16 deep";
    let set = format!(
        "\ntype Deep = {}String{};",
        "Set<".repeat(3_000),
        ">".repeat(3_000)
    );
    refused_on_worker_stack(with_more(schema, &set), nested);
    let record = format!(
        "\ntype Deep = {}String{};",
        "{a: ".repeat(3_000),
        "}".repeat(3_000)
    );
    refused_on_worker_stack(with_more(schema, &record), nested);
    let chain = |of: &dyn Fn(usize) -> String, count: usize| {
        let mut text = "\ntype T0 = String;\n".to_owned();
        (1..count).for_each(|n| text.push_str(&format!("type T{n} = {};\n", of(n - 1))));
        text + &format!("entity Deep = {{ a: T{} }};\n", count - 1)
    };
    let sets = chain(&|n| format!("Set<T{n}>"), 3_000);
    refused_on_worker_stack(with_more(schema, &sets), nested);
    // Each type twice the one before.
    let doubled = chain(&|n| format!("{{ a: T{n}, b: T{n} }}"), 16);
    let doubled = doubled.replace(
        "type T0 = String;",
        "type T0 = { a: String, b: String, c: String, d: String };",
    );
    refused_on_worker_stack(with_more(schema, &doubled), "it has more than 65536 types");
    // A type's name in another place than a type's makes no cycle, and hides no size.
    let annotated = doubled.replace("\ntype T", "\n@doc(\"T15\") type T");
    assert_ne!(annotated, doubled);
    refused_on_worker_stack(
        with_more(schema, &annotated),
        "it has more than 65536 types",
    );
    refused_on_worker_stack(
        with_more(
            schema,
            "\ntype A = { b: B }; type B = Set<A>; entity Deep = { a: A };\n",
        ),
        "is made of itself",
    );
    let many: String = (0..3_000)
        .map(|n| format!("action \"g{}\" in [\"g{n}\"];\n", n + 1))
        .collect();
    let groups = format!("\naction \"g0\";\n{many}");
    refused_on_worker_stack(
        with_more(schema, &groups),
        "a chain of more than 32 memberships",
    );
    let types: String = (0..3_000)
        .map(|n| format!("entity E{} in [E{n}];\n", n + 1))
        .collect();
    let types = format!("\nentity E0;\n{types}");
    refused_on_worker_stack(
        with_more(schema, &types),
        "a chain of more than 32 memberships",
    );
    let sound = "\ntype Name = String; type Names = Set<Name>;\nentity Team in [Team] = { names: Names, of: { a: { b: Names } } };\n";
    load(with_more(schema, sound)).unwrap_or_else(|e| panic!("{e}"));
}

#[test]
fn deep_data_is_refused() {
    let mut files = soc_files();
    files.insert(
        "entities.json".to_owned(),
        format!("{}{}", "[".repeat(90_000), "]".repeat(90_000)),
    );
    refused_on_worker_stack(files, "entities.json: ");
    for (more, part) in [
        (
            format!("\nx = {}1{}\n", "[".repeat(90_000), "]".repeat(90_000)),
            "agents.toml:",
        ),
        (
            format!("\nx = {}1{}\n", "{a = ".repeat(40_000), "}".repeat(40_000)),
            "agents.toml:",
        ),
        (format!("\nx{} = 1\n", ".a".repeat(90_000)), "agents.toml:"),
        (format!("\n[x{}]\n", ".a".repeat(90_000)), "agents.toml:"),
    ] {
        refused_on_worker_stack(with_more("agents.toml", &more), part);
    }
    let mut files = with_more("schema.cedarschema", "\nentity Folder in [Folder];\n");
    let folder = |n: usize| {
        let parents = match n {
            0 => String::new(),
            n => format!("{{ \"type\": \"Folder\", \"id\": \"{}\" }}", n - 1),
        };
        format!(
            "{{ \"uid\": {{ \"type\": \"Folder\", \"id\": \"{n}\" }}, \"parents\": [{parents}], \"attrs\": {{}} }},\n"
        )
    };
    let folders: String = (0..5_000).map(folder).collect();
    let entities = files.get_mut("entities.json").expect("a file");
    *entities = entities.replacen('[', &format!("[\n{folders}"), 1);
    refused_on_worker_stack(files, "a chain of too many targets");
}
