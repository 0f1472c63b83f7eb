//! Inbox events: tells an open page that its inbox changed. The page then fetches its rows; the stream carries none.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Extension, State};
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse as _, Response};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::error::ConsoleError;
use super::session_cookie::ConsoleRequest;
use super::state::Console;
use crate::broker::InboxEvent;
use crate::serve::timeouts::ConnectionClosing;

/// Changes within this time are one event.
const BATCH_WINDOW: Duration = Duration::from_millis(150);
/// After this many milliseconds the browser reconnects (HTML §9.2.5).
const RECONNECT_MS: u32 = 2_000;
/// `Retry-After` when a person has as many windows as they may.
const WINDOWS_FULL_RETRY_AFTER: Duration = Duration::from_secs(15);
/// How often a stream checks that its session is active.
const SESSION_CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// Events that may wait for a slow reader: more would carry nothing new.
const EVENTS_MAX: usize = 4;

pub(super) async fn stream(
    State(console): State<Arc<Console>>,
    closing: Option<Extension<ConnectionClosing>>,
    request: ConsoleRequest,
) -> Result<Response, ConsoleError> {
    // No resume position: a browser that reconnects fetches all its rows.
    let mut watch = console.broker.inbox_changes(&request.context, None)?;
    let permit = console
        .streams
        .acquire(&watch.caller)
        .ok_or(ConsoleError::Overloaded {
            retry_after: WINDOWS_FULL_RETRY_AFTER,
        })?;
    let (sender, receiver) = mpsc::channel::<Result<Bytes, Infallible>>(EVENTS_MAX);
    let broker = console.broker.clone();
    let session = request.context.session;
    let is_session_active = move || {
        session
            .as_ref()
            .is_some_and(|session| broker.is_session_active(session))
    };
    let broker = console.broker.clone();
    let life = Duration::from_millis(watch.life_ms);
    let mut stopped = console.stopped.clone();
    tokio::spawn(async move {
        let _permit = permit;
        let ended = async {
            let closes = async {
                match closing {
                    Some(Extension(ConnectionClosing(mut closing))) => {
                        let _closes_or_gone = closing.wait_for(|closing| *closing).await.is_ok();
                    }
                    None => std::future::pending().await,
                }
            };
            let signed_out = async {
                while is_session_active() {
                    tokio::time::sleep(SESSION_CHECK_INTERVAL).await;
                }
            };
            tokio::select! {
                () = tokio::time::sleep(life) => {}
                () = signed_out => {}
                () = closes => {}
                _ = stopped.wait_for(|stopped| *stopped) => {}
                () = sender.closed() => {}
            }
        };
        let events = async {
            let first = format!("retry: {RECONNECT_MS}\n\n");
            if sender.send(Ok(Bytes::from(first))).await.is_err() {
                return;
            }
            while let Some(news) = watch.next(&broker).await {
                let event = match news {
                    InboxEvent::Heartbeat(_) => Bytes::from_static(b": beat\n\n"),
                    InboxEvent::Snapshot(_)
                    | InboxEvent::Changed(_)
                    | InboxEvent::BudgetChanged => {
                        tokio::time::sleep(BATCH_WINDOW).await;
                        Bytes::from_static(b"event: changed\ndata: inbox\n\n")
                    }
                };
                if !is_session_active() || sender.send(Ok(event)).await.is_err() {
                    return;
                }
            }
        };
        tokio::select! {
            () = ended => {}
            () = events => {}
        }
    });
    let kind = HeaderValue::from_static("text/event-stream");
    let body = Body::from_stream(ReceiverStream::new(receiver));
    Ok(([(header::CONTENT_TYPE, kind)], body).into_response())
}
