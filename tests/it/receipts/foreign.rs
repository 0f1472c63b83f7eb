//! The verifier in Python: one process for every receipt of a test.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde_json::{Value, json};

use crate::generated_stubs;

pub struct ForeignVerifier {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

/// A Python with the package `cryptography`: the one that the stubs use, or the system's.
fn python() -> Option<PathBuf> {
    let system = Command::new("python3")
        .args(["-c", "import cryptography"])
        .stderr(Stdio::null())
        .status();
    if system.is_ok_and(|status| status.success()) {
        return Some("python3".into());
    }
    Some(generated_stubs::tools()?.join("venv/bin/python"))
}

impl ForeignVerifier {
    /// `None` without a Python that can run it.
    pub fn start(keys: &Path) -> Option<Self> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/foreign/verify_receipt.py");
        let mut child = Command::new(python()?)
            .arg("-B")
            .arg(script)
            .arg("--keys")
            .arg(keys)
            .arg("--batch")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("starts");
        let input = child.stdin.take().expect("stdin");
        let output = BufReader::new(child.stdout.take().expect("stdout"));
        Some(Self {
            child,
            input,
            output,
        })
    }

    pub fn answer(&mut self, receipt: &str, realm: Option<&str>) -> Value {
        let question = json!({ "receipt": receipt, "realm": realm });
        writeln!(self.input, "{question}").expect("asked");
        let mut line = String::new();
        self.output.read_line(&mut line).expect("answered");
        serde_json::from_str(&line).expect("JSON")
    }

    /// The part that is refused.
    pub fn refusal(&mut self, receipt: &str, realm: Option<&str>) -> String {
        let answer = self.answer(receipt, realm);
        let part = answer["refused"].as_str();
        part.unwrap_or_else(|| panic!("verified: {answer}"))
            .to_owned()
    }
}

impl Drop for ForeignVerifier {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _gone = self.child.wait();
    }
}
