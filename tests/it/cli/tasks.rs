//! Tasks of this machine: completing twice, what the broker knows, and whose task is the current one.

use serde_json::json;

use super::setup::{CliSetup, READ, finish, text};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn completing_may_be_repeated() {
    let setup = CliSetup::start().await;
    let task = setup.open_task("triage").await;
    let first = setup.json(&["task", "complete"], 0).await;
    assert_eq!(
        (&first["task"], &first["cause"]),
        (&json!(task), &json!("completed"))
    );
    let again = setup.json(&["task", "complete"], 0).await;
    assert_eq!(again, first, "the same report");
    let named = setup
        .json(
            &["task", "complete", "--task", &task, "--outcome", "failed"],
            0,
        )
        .await;
    assert_eq!(named, first);
    // The current task is still this one: nothing is requested in an older task by surprise.
    let request = [&["token", "request"], &READ[..]].concat();
    let refused = setup.json(&request, 1).await;
    assert_eq!(refused["error"]["reason"], "TASK_ENDED");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_that_ended_otherwise_is_not_completed() {
    let setup = CliSetup::start().await;
    let task = setup.open_task("triage").await;
    let show = ["task", "show"];
    let running = setup.json(&show, 0).await;
    assert_eq!(running[0]["state"], "running");
    setup
        .run(&["task", "end", &task, "--key", "olga.pem"])
        .await
        .code(0);
    let ended = setup.json(&show, 0).await;
    assert_eq!(
        (&ended[0]["state"], &ended[0]["end_cause"]),
        (&json!("ended"), &json!("operator"))
    );
    assert!(ended[0]["ended_at"].is_string());
    let report = setup.json(&["task", "complete"], 15).await;
    assert_eq!(report["cause"], "operator");
    let text = setup.run(&["task", "complete"]).await;
    let out = text.code(15).out();
    assert!(
        out.starts_with(&format!("not completed: {task} ended (operator) at ")),
        "{out}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_cannot_be_asked_is_said() {
    let setup = CliSetup::start().await;
    let task = setup.open_task("triage").await;
    // A broker that lost the task, and one that is gone.
    let saved = setup.path(&format!(".local/state/dipylon/tasks/{task}.json"));
    let text = std::fs::read_to_string(&saved).expect("saved");
    std::fs::write(
        &saved,
        text.replace(&setup.served.url, "http://127.0.0.1:1"),
    )
    .expect("file");
    let mut show = setup.program(&["task", "show"]);
    show.env_remove("DIPYLON_URL");
    let shown = finish(show).await;
    let out = shown.code(0).out();
    assert!(
        out.contains("unknown: the broker at http://127.0.0.1:1 cannot be reached"),
        "{out}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_current_task_is_never_that_of_another_agent() {
    let setup = CliSetup::start().await;
    let request = [&["token", "request"], &READ[..]].concat();
    // No task here: nothing to choose.
    setup
        .run(&request)
        .await
        .code(2)
        .err_contains("no task was opened in");

    let (older, newer) = (
        setup.open_task("triage").await,
        setup.open_task("triage").await,
    );
    let token = setup.json(&request, 0).await;
    let timeline = ["task", "timeline", &newer, "--key", "olga.pem"];
    let timeline = setup.json(&timeline, 0).await.to_string();
    assert!(
        timeline.contains(&text(&token["jti"])),
        "the newer task of the agent"
    );

    let reporters = setup.open_task("reporter").await;
    for args in [
        &request[..],
        &["task", "complete"],
        &["task", "keep-alive"],
        &["request", "cancel", "areq_AAAAAAAAAAAAAAAAAAAAAA"],
    ] {
        let refused = setup.run(args).await;
        refused
            .code(2)
            .err_contains("several agents opened tasks in");
        for task in [&older, &newer, &reporters] {
            refused.err_contains(task);
        }
    }
    // Named, by option or variable.
    let named = [&request[..], &["--task", &older]].concat();
    setup.run(&named).await.code(0);
    let mut by_variable = setup.program(&request);
    by_variable.env("DIPYLON_TASK", &newer);
    finish(by_variable).await.code(0);

    // A task that has ended is not in the way.
    let complete = ["task", "complete", "--task", &reporters];
    setup.run(&complete).await.code(0);
    let token = setup.json(&request, 0).await;
    let timeline = ["task", "timeline", &newer, "--key", "olga.pem"];
    let timeline = setup.json(&timeline, 0).await.to_string();
    assert!(timeline.contains(&text(&token["jti"])), "triage's newer");

    // Another directory has none of these, and its own current task.
    let elsewhere = setup.path("elsewhere");
    std::fs::create_dir(&elsewhere).expect("dir");
    let in_elsewhere = |args: &[&str]| {
        let mut program = setup.program(args);
        program.current_dir(&elsewhere);
        program
    };
    let refused = finish(in_elsewhere(&request)).await;
    refused
        .code(2)
        .err_contains("no task was opened in")
        .err_contains(&reporters);
    let evidence = setup.path("reporter").display().to_string();
    let open = ["task", "open", "--purpose", "p", "--evidence", &evidence];
    finish(in_elsewhere(&open)).await.code(0);
    finish(in_elsewhere(&request)).await.code(0);
}

/// The broker would have a task whose id is nowhere.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_that_could_not_be_saved_is_not_opened() {
    let setup = CliSetup::start().await;
    let removed = setup.path("removed");
    let evidence = setup.path("triage").display().to_string();
    let open = ["task", "open", "--purpose", "p", "--evidence", &evidence];
    let mut gone = tokio::process::Command::new("bash");
    gone.args([
        "-c",
        "mkdir removed; cd removed; rmdir ../removed; exec \"$@\"",
        "bash",
    ]);
    let program = setup.program(&open);
    gone.arg(program.as_std().get_program());
    gone.args(program.as_std().get_args());
    gone.env_clear().current_dir(setup.home.path());
    for (name, value) in program.as_std().get_envs() {
        gone.env(name, value.unwrap_or_default());
    }
    let mut unwritable = setup.program(&open);
    unwritable.env("XDG_STATE_HOME", &evidence);
    for (program, why) in [(gone, "current directory"), (unwritable, "Not a directory")] {
        finish(program).await.code(1).err_contains(why);
    }
    assert!(!removed.exists());
    let tasks = setup.json(&["task", "list", "--key", "olga.pem"], 0).await;
    assert_eq!(tasks, json!([]));
}

/// Only the broker says that a task has ended: this machine's clock may be wrong.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_that_runs_keeps_its_key() {
    let setup = CliSetup::start().await;
    let task = setup.open_task("triage").await;
    let file = |end: &str| setup.path(&format!(".local/state/dipylon/tasks/{task}.{end}"));
    let change = |by_ms: i64| {
        let saved = std::fs::read_to_string(file("json")).expect("saved");
        let mut saved: serde_json::Value = serde_json::from_str(&saved).expect("JSON");
        for moment in ["deadline", "ended_at"] {
            if let Some(at) = saved[moment].as_i64() {
                saved[moment] = (at - by_ms).into();
            }
        }
        std::fs::write(file("json"), saved.to_string()).expect("file");
    };
    change(86_400_000);
    setup.open_task("triage").await;
    assert!(file("pem").exists(), "a day ahead");
    setup
        .run(&["task", "end", &task, "--key", "olga.pem"])
        .await
        .code(0);
    setup.open_task("triage").await;
    assert!(file("pem").exists(), "it ended just now");
    change(3_600_000);
    setup.open_task("triage").await;
    assert!(!file("pem").exists() && !file("json").exists());
}
