//! Stubs in other languages: the compilers of Python, Go, TypeScript and Java take `proto/`, their output compiles, and each
//! reads a request and writes the same bytes again. `.ci/stub-tools` installs the compilers into `target/stub-tools`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use dipylon_sdk::model::{Action, ActionName, Audience, Param, Target};
use dipylon_sdk::proto::{convert, v1};
use prost::Message as _;

use crate::support::requirement::skip_without;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// The installed compilers; prints and returns `None` where they are not installed and not required.
pub fn tools() -> Option<PathBuf> {
    let tools = Path::new(ROOT).join("target/stub-tools");
    if tools.join("stamp").is_file() {
        return Some(tools);
    }
    skip_without(
        "stubs",
        format_args!("no {}: .ci/stub-tools installs it", tools.display()),
    );
    None
}

/// A request with a number of more than 32 bits and a text outside ASCII.
fn request() -> v1::RequestTokenRequest {
    let action = Action::new(
        ActionName::parse("host.isolate").expect("name"),
        Audience::parse("https://edr.example").expect("audience"),
        Target::parse("Host", TARGET_ID).expect("target"),
        BTreeMap::from([("until".to_owned(), Param::Int(NUMBER))]),
    );
    v1::RequestTokenRequest {
        task_id: "task_BQUFBQUFBQUFBQUFBQUFBQ".to_owned(),
        action: Some(convert::action_to_wire(&action.expect("action"))),
        ttl: Some(convert::seconds_to_wire(300)),
        reason: "é".to_owned(),
        idempotency_key: "one".to_owned(),
        ..v1::RequestTokenRequest::default()
    }
}

const TARGET_ID: &str = "web-1";
const NUMBER: i64 = -9_007_199_254_740_991;

/// Runs a command to its end and returns what it printed; a failure shows everything.
fn run(command: &mut Command) -> String {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}\n{text}{errors}");
    text
}

/// `protoc` of grpcio-tools, which takes the plugins of other languages too.
fn protoc(tools: &Path, arguments: &[String]) {
    let mut command = Command::new(tools.join("venv/bin/python"));
    command
        .current_dir(ROOT)
        .args(["-m", "grpc_tools.protoc", "-Iproto"]);
    for file in ["types", "task", "token", "approval", "governance"] {
        command.arg(format!("proto/dipylon/v1/{file}.proto"));
    }
    run(command.args(arguments));
}

/// Copies the program of a language into a directory of its own.
fn program(language: &str, into: &Path) {
    let from = Path::new(ROOT)
        .join("tests/it/generated_stubs")
        .join(language);
    run(Command::new("cp").arg("-r").arg(from).arg(into));
}

fn python(tools: &Path, work: &Path, request: &str) -> String {
    let work = work.join("python");
    program("python", &work);
    let out = work.display();
    protoc(
        tools,
        &[
            format!("--python_out={out}"),
            format!("--pyi_out={out}"),
            format!("--grpc_python_out={out}"),
        ],
    );
    run(Command::new(tools.join("venv/bin/python"))
        .arg(work.join("stubs.py"))
        .arg(request))
}

fn go(tools: &Path, work: &Path, request: &str) -> String {
    let work = work.join("go");
    program("go", &work);
    let mut arguments = Vec::new();
    for plugin in ["go", "go-grpc"] {
        let path = tools.join(format!("bin/protoc-gen-{plugin}"));
        arguments.push(format!("--plugin={}", path.display()));
        arguments.push(format!("--{plugin}_out={}", work.display()));
        // The package of `go_package` is below that of the module in go.mod.
        arguments.push(format!(
            "--{plugin}_opt=module=github.com/dipylon/dipylon/gen"
        ));
    }
    protoc(tools, &arguments);
    run(Command::new("go")
        .current_dir(&work)
        .env("GOCACHE", tools.join("go-cache"))
        .env("GOPROXY", "off")
        .args(["build", "-o", "stubs", "."]));
    run(Command::new(work.join("stubs")).arg(request))
}

fn typescript(tools: &Path, work: &Path, request: &str) -> String {
    let work = work.join("typescript");
    program("typescript", &work);
    let modules = tools.join("node/node_modules");
    let plugin = modules.join(".bin/protoc-gen-es");
    protoc(
        tools,
        &[
            format!("--plugin={}", plugin.display()),
            format!("--es_out={}", work.display()),
            "--es_opt=target=ts,import_extension=js".to_owned(),
        ],
    );
    std::os::unix::fs::symlink(&modules, work.join("node_modules")).expect("link");
    run(Command::new(modules.join(".bin/tsc"))
        .arg("--project")
        .arg(&work));
    run(Command::new("node")
        .arg(work.join("out/stubs.js"))
        .arg(request))
}

fn java(tools: &Path, work: &Path, request: &str) -> String {
    let work = work.join("java");
    program("java", &work);
    let maven = tools.join("maven");
    run(Command::new("mvn")
        .current_dir(&work)
        .args(["--offline", "--quiet", "--batch-mode"])
        .arg(format!("-Dmaven.repo.local={}", maven.display()))
        .arg(format!("-Dproto.directory={ROOT}/proto"))
        .arg("compile"));
    let mut path = vec![work.join("target/classes")];
    for group in [
        "com/google/protobuf/protobuf-java",
        "com/google/guava",
        "io/grpc",
    ] {
        jars(&maven.join(group), &mut path);
    }
    run(Command::new("java")
        .arg("-classpath")
        .arg(std::env::join_paths(path).expect("paths"))
        .arg("Stubs")
        .arg(request))
}

fn jars(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("folder") {
        let path = entry.expect("entry").path();
        if path.is_dir() {
            jars(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "jar") {
            found.push(path);
        }
    }
}

#[test]
fn stubs_of_other_languages_compile_and_agree() {
    let Some(tools) = tools() else { return };
    let work = tempfile::tempdir().expect("directory");
    let bytes: String = request()
        .encode_to_vec()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    // The services, two fields it read, and the message as it writes it.
    let expected = format!("4 {TARGET_ID} {NUMBER} {bytes}\n");
    type Language = fn(&Path, &Path, &str) -> String;
    let languages: [(&str, Language); 4] = [
        ("Python", python),
        ("Go", go),
        ("TypeScript", typescript),
        ("Java", java),
    ];
    std::thread::scope(|scope| {
        let running = languages.map(|(language, run)| {
            let (tools, work, bytes) = (&tools, work.path(), &bytes);
            (language, scope.spawn(move || run(tools, work, bytes)))
        });
        for (language, run) in running {
            let found = run.join().unwrap_or_else(|_| panic!("{language} failed"));
            assert_eq!(found, expected, "{language}");
        }
    });
}
