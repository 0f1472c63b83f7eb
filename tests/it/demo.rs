//! `dipylon demo`, the README's first command.

use std::process::Command;

#[test]
fn demo_steps_pass() {
    let home = tempfile::tempdir().expect("dir");
    let output = Command::new(env!("CARGO_BIN_EXE_dipylon"))
        .args(["demo", "--json"])
        .current_dir(home.path())
        .env("HOME", home.path())
        .output()
        .expect("runs");
    let text = String::from_utf8_lossy(&output.stdout);
    let steps: Vec<serde_json::Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).expect("one object per step"))
        .filter(|step: &serde_json::Value| step.get("step").is_some())
        .collect();
    for step in &steps {
        assert_eq!(step["ok"], true, "{step}");
        assert!(
            step["expected"].is_string() && step["got"].is_string(),
            "{step}"
        );
    }
    assert!(steps.len() >= 25, "{text}");
    assert!(output.status.success());
    assert!(!text.contains("eyJ"), "no token is shown");
}
