//! `operator.sock` in the run directory, for root alone. A socket of its own: the
//! plugin's may have all of its places taken, which is when an operator has to look.

use super::SOCKET;
use super::desk::Desk;
use crate::responder::{self, Page, Request};
use crate::server::{Socket, SocketError};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;

/// Longest body of a request.
const MAX_BODY: usize = 4 << 10;

/// Questions at once.
const MAX_CONNECTIONS: usize = 8;

/// How long an answer may take to be made: a step that hangs must be seen as such.
const ANSWER: Duration = Duration::from_secs(20);

/// How long the end of a connection is waited for: it is there already, or not.
const LINGER: Duration = Duration::from_millis(5);

/// The bound socket; its file goes with it.
#[derive(Debug)]
pub(crate) struct OperatorSocket {
    socket: Socket,
}

impl OperatorSocket {
    /// Listens in the run directory.
    ///
    /// # Errors
    /// See [`SocketError`].
    pub(crate) fn bind(run_dir: &Path) -> Result<Self, SocketError> {
        Ok(Self { socket: Socket::bind(run_dir, SOCKET)? })
    }

    /// Answers until it is dropped.
    pub(crate) async fn run(self, desk: Arc<Desk>) {
        let serve = move |stream| serve(stream, Arc::clone(&desk));
        self.socket.serve("the operator's socket", MAX_CONNECTIONS, serve).await;
    }
}

async fn serve(mut stream: UnixStream, desk: Arc<Desk>) {
    let page = match responder::read(&mut stream, MAX_BODY).await {
        Ok(None) => return,
        Err(refusal) => refusal,
        Ok(Some(request)) if has_left(&mut stream).await => {
            tracing::warn!(
                path = request.path,
                "an operator went away before the answer; nothing was done"
            );
            return;
        }
        Ok(Some(request)) => answer(request, desk).await,
    };
    responder::write(&mut stream, &page, true).await;
}

/// Who asked waits no more. A command that had no answer from an agent that hung, and
/// said so, must not be carried out when the agent goes on minutes later.
async fn has_left(stream: &mut UnixStream) -> bool {
    let mut more = [0; 1];
    matches!(tokio::time::timeout(LINGER, stream.read(&mut more)).await, Ok(Ok(0) | Err(_)))
}

async fn answer(request: Request, desk: Arc<Desk>) -> Page {
    let made = tokio::task::spawn_blocking(move || {
        desk.answer(&request.method, &request.path, &request.body)
    });
    match tokio::time::timeout(ANSWER, made).await {
        Ok(Ok(page)) => page,
        Ok(Err(error)) => Page::text(500, &format!("the agent's own defect: {error}")),
        Err(_) => Page::text(
            503,
            &format!("the agent could not make an answer within {} s", ANSWER.as_secs()),
        ),
    }
}
