//! Tells a page that its inbox moved. The page then asks for its rows anew: nothing of them goes this way.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Extension, State};
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse as _, Response};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::session_cookie::Call;
use super::{Console, answer};
use crate::broker::InboxEvent;
use crate::serve::deadline::Closing;

/// What moves within this time is told once.
const GATHER: Duration = Duration::from_millis(150);
/// After this many milliseconds the browser comes again (HTML §9.2.5).
const RETRY_MS: u32 = 2_000;
/// When to come again where a person has as many windows as they may.
const WINDOWS_FULL_RETRY: Duration = Duration::from_secs(15);
/// How soon a stream ends after its session.
const VISIT_BEAT: Duration = Duration::from_secs(1);
/// Events that may wait for a slow reader: more would say the same.
const EVENTS_MAX: usize = 4;

pub(super) async fn stream(
    State(console): State<Arc<Console>>,
    closing: Option<Extension<Closing>>,
    call: Call,
) -> Response {
    // A browser that comes back has its page, and asks for its rows anew whatever it missed.
    let mut watch = match console.broker.inbox_changes(&call.presented, None) {
        Ok(watch) => watch,
        Err(refusal) => return answer::of(&console, &call, Err(refusal)),
    };
    let Some(counted) = console.streams.enter(&watch.caller) else {
        return answer::too_many(&console, call.row, WINDOWS_FULL_RETRY);
    };
    let (tell, told) = mpsc::channel::<Result<Bytes, Infallible>>(EVENTS_MAX);
    let broker = console.broker.clone();
    let session = call.presented.session;
    let is_session_alive = move || {
        session
            .as_ref()
            .is_some_and(|session| broker.is_session_alive(session))
    };
    let broker = console.broker.clone();
    let life = Duration::from_millis(watch.life_ms);
    let mut stopped = console.stopped.clone();
    tokio::spawn(async move {
        let _counted = counted;
        let over = async {
            let closes = async {
                match closing {
                    Some(Extension(Closing(mut closing))) => {
                        let _closes_or_gone = closing.wait_for(|closing| *closing).await.is_ok();
                    }
                    None => std::future::pending().await,
                }
            };
            let signed_out = async {
                while is_session_alive() {
                    tokio::time::sleep(VISIT_BEAT).await;
                }
            };
            tokio::select! {
                () = tokio::time::sleep(life) => {}
                () = signed_out => {}
                () = closes => {}
                _ = stopped.wait_for(|stopped| *stopped) => {}
                () = tell.closed() => {}
            }
        };
        let telling = async {
            let first = format!("retry: {RETRY_MS}\n\n");
            if tell.send(Ok(Bytes::from(first))).await.is_err() {
                return;
            }
            while let Some(news) = watch.next(&broker).await {
                let beat = match news {
                    InboxEvent::Heartbeat(_) => Bytes::from_static(b": beat\n\n"),
                    InboxEvent::Snapshot(_) | InboxEvent::Changed(_) | InboxEvent::BudgetChanged => {
                        tokio::time::sleep(GATHER).await;
                        Bytes::from_static(b"event: changed\ndata: inbox\n\n")
                    }
                };
                if !is_session_alive() || tell.send(Ok(beat)).await.is_err() {
                    return;
                }
            }
        };
        tokio::select! {
            () = over => {}
            () = telling => {}
        }
    });
    let kind = HeaderValue::from_static("text/event-stream");
    let body = Body::from_stream(ReceiverStream::new(told));
    ([(header::CONTENT_TYPE, kind)], body).into_response()
}
