//! Exit codes of `dipylon exec`: a command's own code is never taken for an outcome of `exec`.

use serde_json::Value;

use super::setup::{CommandOutput, DISABLE, ExecSetup, READ};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reserved_codes_of_commands_are_reported_as_1() {
    let setup = ExecSetup::start().await;
    for (own, reported) in [
        (109, 109),
        (110, 1),
        (117, 1),
        (120, 1),
        (121, 121),
        (12, 12),
    ] {
        let output = setup.script(&READ, &format!("exit {own}")).await;
        output.exit_code(reported);
        let line = format!("the command exited with {own}, which is reserved");
        assert_eq!(
            output.err.contains(&line),
            own != reported,
            "{}",
            output.err
        );
        let last = match own == reported {
            true => format!("done      exit {reported}, 1 token revoked"),
            false => format!("done      exit 1, the command's was {own}, 1 token revoked"),
        };
        output.stderr_contains(&last);
    }
    let options = [&READ[..], &["--json"]].concat();
    let output = setup.script(&options, "exit 110").await;
    output.exit_code(1);
    let last = output.err.lines().last().expect("an event");
    let last: Value = serde_json::from_str(last).expect("JSON");
    assert_eq!(
        (&last["exit"], &last["command_exit"]),
        (&Value::from(1), &Value::from(110))
    );
}

/// An access request that expires while `exec` waits for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn expired_approval_has_its_own_code() {
    let setup =
        ExecSetup::start_with_people(|people| people.replace("wait = \"15m\"", "wait = \"1s\""))
            .await;
    let output = setup.exec(&DISABLE, &["true"]).output().await;
    CommandOutput::new(output.expect("runs"))
        .exit_code(112)
        .stderr_contains("dipylon: denied    EXPIRED")
        .stderr_contains("done      exit 112, 0 tokens revoked");
    assert_eq!(setup.entries("\"TokenIssued\""), 0);
}
