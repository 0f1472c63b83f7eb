//! Message bodies that break off when the token ends, so that no transfer outlives it.

use std::pin::Pin;
use std::task::{Context, Poll};

use hyper::body::{Body, Bytes, Frame, Incoming, SizeHint};

pub(super) type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A body that fails as soon as the token has ended.
pub(super) struct CancellableBody {
    body: Incoming,
    ended: Pin<Box<dyn Future<Output = ()> + Send>>,
}

/// The error that breaks a transfer off.
#[derive(Debug, thiserror::Error)]
#[error("the token has ended")]
struct TokenEnded;

impl CancellableBody {
    pub(super) fn new(body: Incoming, ended: impl Future + Send + 'static) -> Self {
        Self {
            body,
            ended: Box::pin(async move {
                ended.await;
            }),
        }
    }
}

impl Body for CancellableBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if self.ended.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Some(Err(TokenEnded.into())));
        }
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        frame.map(|frame| frame.map(|frame| frame.map_err(BoxError::from)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
