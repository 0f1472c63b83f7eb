//! Connections of `dipylon exec`: proxies in the environment, and connections to the broker that die silently.

use dipylon_sdk::model::TaskId;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixListener};
use tokio::sync::watch;

use super::setup::{ExecSetup, READ, RunningCommand};
use crate::support::wait::in_time;

/// A forward proxy that records what it gets.
struct RecordingProxy {
    url: String,
    listener: std::net::TcpListener,
}

impl RecordingProxy {
    fn start() -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        listener.set_nonblocking(true).expect("a mode");
        let url = format!("http://{}", listener.local_addr().expect("address"));
        Self { url, listener }
    }

    /// The number of connections that arrived; each is closed.
    fn connections(&self) -> usize {
        std::iter::from_fn(|| self.listener.accept().ok()).count()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn environment_proxy_gets_neither_the_secret_url_nor_calls() {
    let setup = ExecSetup::start().await;
    let proxy = RecordingProxy::start();
    let script = "curl -sS --max-time 20 \"$DIPYLON_PROXY_URL/cases/INC-8841\"; echo; echo \"$NO_PROXY|$no_proxy\"";
    for (own, list) in [
        (None, "127.0.0.1,localhost,::1"),
        (Some("corp.example"), "corp.example,127.0.0.1,localhost,::1"),
    ] {
        let mut program = setup.exec(&READ, &["bash", "-c", script]);
        for name in ["http_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"] {
            program.env(name, &proxy.url);
        }
        program.env_remove("no_proxy").env_remove("NO_PROXY");
        if let Some(own) = own {
            program.env("NO_PROXY", own);
        }
        let running = RunningCommand::start(program);
        running
            .end()
            .await
            .exit_code(0)
            .stdout_contains("done by the resource server")
            .stdout_contains(&format!("{list}|{list}"));
    }
    assert_eq!(setup.resource.seen().len(), 2);
    assert_eq!(proxy.connections(), 0, "nothing went to the proxy");
}

/// A relay in front of the broker that forgets its connections when told to: they stay open and carry nothing more, while new
/// ones work.
struct ForgetfulRelay {
    accepted: watch::Receiver<usize>,
    forget: watch::Sender<usize>,
}

impl ForgetfulRelay {
    fn start(listener: UnixListener, broker: &str) -> Self {
        let (count, accepted) = watch::channel(0);
        let (forget, forgotten) = watch::channel(0);
        let broker = broker.to_owned();
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let number = *count.borrow() + 1;
                let far = TcpStream::connect(&broker).await.expect("the broker");
                let (near, far) = (near.into_split(), far.into_split());
                tokio::spawn(relay(near.0, far.1, number, forgotten.clone()));
                tokio::spawn(relay(far.0, near.1, number, forgotten.clone()));
                count.send_replace(number);
            }
        });
        Self { accepted, forget }
    }

    fn forget_all(&self) -> usize {
        let count = *self.accepted.borrow();
        self.forget.send_replace(count);
        count
    }
}

/// Copies until its connection is forgotten, then holds both sides open.
async fn relay(
    mut from: impl tokio::io::AsyncRead + Unpin,
    mut to: impl tokio::io::AsyncWrite + Unpin,
    number: usize,
    mut forgotten: watch::Receiver<usize>,
) {
    let mut is_forgotten = std::pin::pin!(async move {
        drop(forgotten.wait_for(|last| *last >= number).await);
    });
    let mut buffer = vec![0; 16 * 1024];
    loop {
        tokio::select! {
            biased;
            () = &mut is_forgotten => break,
            read = from.read(&mut buffer) => match read {
                Ok(0) | Err(_) => return,
                Ok(n) => {
                    if to.write_all(&buffer[..n]).await.is_err() {
                        return;
                    }
                }
            }
        }
    }
    std::future::pending::<()>().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silent_connection_is_replaced_before_the_lease_ends() {
    let setup = ExecSetup::start().await;
    let socket = setup.home.path().join("relay.sock");
    let listener = UnixListener::bind(&socket).expect("listens");
    let broker = setup.served.url.trim_start_matches("http://").to_owned();
    let mut relay = ForgetfulRelay::start(listener, &broker);
    let options = [
        &READ[..],
        &[
            "--heartbeat",
            "9s",
            "--socket",
            socket.to_str().expect("text"),
        ],
    ]
    .concat();
    let script = "echo $DIPYLON_EXEC_TASK; read -r go";
    let mut program = setup.exec(&options, &["bash", "-c", script]);
    program.stdin(std::process::Stdio::piped());
    let mut running = RunningCommand::start(program);
    let task = TaskId::parse(&running.stdout_line().await).expect("a task");
    let before = relay.forget_all();
    let accepted = relay.accepted.wait_for(|count| *count > before);
    in_time("another connection", accepted)
        .await
        .expect("relays");
    // The next heartbeat arrives over it: longer than the lease, the task is still open.
    let lease = || {
        setup
            .served
            .broker
            .show()
            .task(&task)
            .and_then(|task| task.lease)
    };
    let first = lease().expect("a lease").until;
    crate::support::wait::until("the lease is extended", || {
        lease().is_some_and(|lease| lease.until > first)
    })
    .await;
    drop(running.child.stdin.take());
    running
        .end()
        .await
        .exit_code(1)
        .stderr_contains("done      exit 1, 1 token revoked, task_");
}
