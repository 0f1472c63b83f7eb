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

use super::page;
use super::visit::Call;
use super::{Console, answer};
use crate::serve::deadline::Closing;

/// A page hears something at least this often, so that it sees a connection that is gone.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// What moves within this time is told once.
const GATHER: Duration = Duration::from_millis(150);
/// A stream ends after this long; the browser comes again, and shows its visit again.
const LIFE: Duration = Duration::from_secs(300);
/// After this many milliseconds the browser comes again (HTML §9.2.5).
const RETRY_MS: u32 = 2_000;
/// Events that may wait for a slow reader: more would say the same.
const EVENTS_MAX: usize = 4;

pub(super) async fn stream(
    State(console): State<Arc<Console>>,
    closing: Option<Extension<Closing>>,
    call: Call,
) -> Response {
    let visitor = match page::visitor(&console, &call) {
        Ok(visitor) => visitor,
        Err(response) => return response,
    };
    let Some(counted) = console.streams.enter(&visitor.id) else {
        return answer::too_many(&console, call.row, HEARTBEAT);
    };
    let (tell, told) = mpsc::channel::<Result<Bytes, Infallible>>(EVENTS_MAX);
    let mut tail = console.hall.journal().tail();
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
            tokio::select! {
                () = tokio::time::sleep(LIFE) => {}
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
            loop {
                let beat = tokio::select! {
                    changed = tail.changed() => {
                        if changed.is_err() {
                            return;
                        }
                        tokio::time::sleep(GATHER).await;
                        tail.mark_unchanged();
                        Bytes::from_static(b"event: changed\ndata: inbox\n\n")
                    }
                    () = tokio::time::sleep(HEARTBEAT) => Bytes::from_static(b": beat\n\n"),
                };
                if tell.send(Ok(beat)).await.is_err() {
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
