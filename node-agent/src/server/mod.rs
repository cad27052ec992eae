//! The socket that plugins talk to. It owns who is served, how many at once and
//! for how long; what is done is the [`Service`]'s.

mod exchange;
mod socket;

use crate::failure::Failure;
use exchange::ExchangeError;
use socket::REST;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::Instant;
use wire::code;
use wire::request::{Answer, Endpoint, SOCKET_NAME};

pub(crate) use exchange::{content_length, phrase};
pub(crate) use socket::{Socket, SocketError, private_directory};

/// Requests served at once. Each may hold a thread and a namespace; a node has
/// room for 110 pods by default, and for 256 with Kubernetes' largest setting.
const MAX_REQUESTS: usize = 256;

/// How long a whole request may take to arrive. The plugin sends it at once.
const READ_TIMEOUT: Duration = Duration::from_secs(2);

/// How long an answer may take to leave.
const WRITE_TIMEOUT: Duration = Duration::from_secs(2);

/// How long requests that are under way may go on after the order to stop.
const DRAIN: Duration = Duration::from_secs(5);

/// How often the server's loop goes round at least, and looks whether plugins can
/// find it.
const BEAT: Duration = Duration::from_secs(1);

/// What is done with a request. Runs on a blocking thread of its own.
pub(crate) trait Service: Send + Sync + 'static {
    /// Who asks and how long they wait; from the body alone, whatever is wrong in it.
    fn caller(&self, body: &[u8]) -> Caller;

    /// Serves it, at the latest by `deadline`.
    ///
    /// # Errors
    ///
    /// The refusal that the caller gets.
    fn serve(
        &self,
        endpoint: Endpoint,
        body: &[u8],
        along: Along,
        deadline: std::time::Instant,
    ) -> Result<Answer, Failure>;
}

/// What comes with a request besides its body.
#[derive(Debug, Default)]
pub(crate) struct Along {
    /// A network namespace.
    pub(crate) netns: Option<OwnedFd>,
    /// The process that asks, where it can be seen from here.
    pub(crate) process: Option<i32>,
}

/// Hears of what the server does.
pub(crate) trait Observer: Send + Sync + 'static {
    /// The server's loop went round, and plugins can find it.
    fn beat(&self);

    /// A request has come.
    fn begun(&self);

    /// It was answered; also for those that are [`Self::begun`] and go away, with the
    /// endpoint unknown.
    fn ended(&self, outcome: &Outcome);
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// What was asked for, if that became known.
    pub(crate) endpoint: Option<Endpoint>,
    /// HTTP status; 0 when there was nothing to answer.
    pub(crate) status: u16,
    /// CNI error code; 0 for success.
    pub(crate) code: u32,
    /// From the connection to the answer.
    pub(crate) took: Duration,
}

/// Whom a request is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Caller {
    /// When the request must be answered, from when it was begun.
    pub(crate) limit: Duration,
    /// The pod's namespace, empty when none is named.
    pub(crate) namespace: String,
    /// The pod.
    pub(crate) pod: String,
    /// Its uid, as far as the runtime said it.
    pub(crate) uid: String,
}

/// A bound socket.
#[derive(Debug)]
pub(crate) struct Server {
    socket: Socket,
    /// Directories that requests need.
    needs: Vec<PathBuf>,
}

impl Server {
    /// Makes the run directory, the socket, and directories in it that requests need.
    ///
    /// # Errors
    ///
    /// When one cannot be had, or another agent serves there.
    pub(crate) fn bind(run_dir: &Path, needs: &[&str]) -> Result<Self, SocketError> {
        let socket = Socket::bind(run_dir, SOCKET_NAME)?;
        let needs: Vec<PathBuf> = needs.iter().map(|name| run_dir.join(name)).collect();
        needs.iter().try_for_each(|path| private_directory(path))?;
        Ok(Self { socket, needs })
    }

    /// Makes what is gone again: somebody may empty the run directory under a running
    /// agent, which would not be found any more and could write no record.
    fn keep(&mut self) -> bool {
        let found = self.socket.keep();
        // What is in the way is said by the request that needs it.
        found && self.needs.iter().all(|path| path.is_dir() || private_directory(path).is_ok())
    }

    /// Serves until `stop` is ready, then lets requests under way finish for
    /// [`DRAIN`] and removes the socket.
    pub(crate) async fn run<S: Service>(
        mut self,
        service: Arc<S>,
        observer: Arc<dyn Observer>,
        stop: impl Future<Output = ()>,
    ) {
        let mut beats = tokio::time::interval(BEAT);
        let places = Arc::new(Semaphore::new(MAX_REQUESTS));
        let mut requests = JoinSet::new();
        tokio::pin!(stop);
        loop {
            let stream = tokio::select! {
                () = &mut stop => break,
                _ = beats.tick() => {
                    // An agent that stays out of reach is started anew, and with it
                    // its mounts.
                    if self.keep() {
                        observer.beat();
                    }
                    continue;
                }
                accepted = self.socket.accept() => match accepted {
                    Ok(stream) => stream,
                    Err(error) => {
                        tracing::error!(reason = %error, "cannot accept a plugin's connection");
                        tokio::time::sleep(REST).await;
                        continue;
                    }
                },
            };
            // Ends of requests are collected as new ones come.
            while requests.try_join_next().is_some() {}
            let place = Arc::clone(&places).try_acquire_owned().ok();
            let (service, observer) = (Arc::clone(&service), Arc::clone(&observer));
            requests.spawn(async move {
                converse(stream, service, observer, place.is_some()).await;
                drop(place);
            });
        }
        // New plugins find no socket, which they report as such.
        drop(self.socket);
        let drained =
            tokio::time::timeout(DRAIN, async { while requests.join_next().await.is_some() {} });
        if drained.await.is_err() {
            tracing::warn!(
                left = requests.len(),
                "requests were still under way and are abandoned"
            );
        }
    }
}

/// One connection from its first byte to its last.
async fn converse<S: Service>(
    mut stream: UnixStream,
    service: Arc<S>,
    observer: Arc<dyn Observer>,
    has_place: bool,
) {
    let begun = Instant::now();
    let process = match exchange::peer(&stream) {
        Ok(peer) if peer.is_root => peer.process,
        Ok(_) => {
            tracing::warn!(
                "a caller that is not root connected to the plugin socket and was turned away"
            );
            return;
        }
        Err(error) => {
            tracing::warn!(reason = %error, "cannot tell who connected to the plugin socket");
            return;
        }
    };
    observer.begun();
    let request = if has_place {
        receive(&mut stream).await
    } else {
        Err(ExchangeError::Refused(overloaded()))
    };
    let reply = Arc::new(Reply { stream, observer, begun, given: AtomicBool::new(false) });
    let left = match request {
        Ok(request) => serve(request, service, process, &reply).await,
        Err(ExchangeError::Refused(failure)) => reply.give(None, Err(failure)),
        Err(error) => {
            reply.ended(None, 0, 0);
            tracing::debug!(reason = %crate::failure::causes(&error), "no request arrived");
            return;
        }
    };
    let rest = exchange::finish(&reply.stream, left.as_deref().unwrap_or_default());
    match tokio::time::timeout(WRITE_TIMEOUT, rest).await {
        Ok(Ok(())) => exchange::drain(&reply.stream).await,
        Ok(Err(error)) => tracing::debug!(reason = %error, "caller did not take its answer"),
        Err(_) => tracing::debug!("caller did not take its answer in time"),
    }
}

async fn receive(stream: &mut UnixStream) -> Result<exchange::Request, ExchangeError> {
    tokio::time::timeout(READ_TIMEOUT, exchange::read(stream)).await.unwrap_or_else(|_| {
        let what = format!("no whole request within {} ms", READ_TIMEOUT.as_millis());
        Err(ExchangeError::Refused(Failure::bad_request(what).with_status(408)))
    })
}

/// Has a request served, and answered at its deadline in any case; what of the answer
/// has not left yet.
async fn serve<S: Service>(
    request: exchange::Request,
    service: Arc<S>,
    process: Option<i32>,
    reply: &Arc<Reply>,
) -> Option<Vec<u8>> {
    let caller = Arc::new(service.caller(&request.body));
    let deadline = reply.begun + caller.limit;
    let endpoint = request.endpoint;
    let mut worker = tokio::task::spawn_blocking({
        let (reply, caller) = (Arc::clone(reply), Arc::clone(&caller));
        move || {
            let along = Along { netns: request.netns, process };
            let answer = service.serve(endpoint, &request.body, along, deadline.into_std());
            reply.give(Some((endpoint, &caller)), answer)
        }
    });
    // The worker looks at the clock between its steps; this one is for a step
    // that hangs. The worker goes on and then finds itself too late.
    let failure = match tokio::time::timeout_at(deadline, &mut worker).await {
        Ok(Ok(left)) => return left,
        Ok(Err(error)) => Failure::new(
            code::INTERNAL,
            format!("the agent's own defect: {error}"),
            "report it with the agent's log",
        ),
        Err(_) => timed_out(caller.limit),
    };
    match reply.give(Some((endpoint, &caller)), Err(failure)) {
        // It came at the last moment, and only has to leave.
        None => worker.await.ok().flatten(),
        left => left,
    }
}

/// The answer to a request, which is given once: by the thread that has it, since
/// waking another one to write it takes as long as a pod outside the mesh is decided
/// about, or by the clock.
struct Reply {
    stream: UnixStream,
    observer: Arc<dyn Observer>,
    begun: Instant,
    given: AtomicBool,
}

impl Reply {
    /// Answers, and says what did not leave at once; `None` when there was an answer
    /// before. The one place where a refusal is logged.
    fn give(
        &self,
        whom: Option<(Endpoint, &Caller)>,
        outcome: Result<Answer, Failure>,
    ) -> Option<Vec<u8>> {
        if self.given.swap(true, Ordering::AcqRel) {
            return None;
        }
        let endpoint = whom.map(|(endpoint, _)| endpoint);
        let (status, body) = match outcome {
            Ok(answer) => {
                self.ended(endpoint, 200, 0);
                (200, serde_json::to_vec(&answer).unwrap_or_default())
            }
            Err(failure) => {
                log_refusal(&failure, whom);
                self.ended(endpoint, failure.status, failure.error.code);
                (failure.status, failure.error.to_json())
            }
        };
        let mut bytes = exchange::answer(status, &body);
        bytes.drain(..exchange::send(&self.stream, &bytes));
        Some(bytes)
    }

    fn ended(&self, endpoint: Option<Endpoint>, status: u16, code: u32) {
        self.observer.ended(&Outcome { endpoint, status, code, took: self.begun.elapsed() });
    }
}

fn log_refusal(failure: &Failure, whom: Option<(Endpoint, &Caller)>) {
    let text = |value: fn(&Caller) -> &str| whom.map(|(_, c)| value(c)).filter(|v| !v.is_empty());
    tracing::warn!(
        request = whom.map(|(endpoint, _)| endpoint.path()),
        ns = text(|c| &c.namespace),
        pod = text(|c| &c.pod),
        uid = text(|c| &c.uid),
        code = failure.error.code,
        reason = failure.error.msg,
        "refused"
    );
}

fn timed_out(limit: Duration) -> Failure {
    Failure::new(
        code::AGENT_TIMED_OUT,
        format!("the agent did not finish within {} ms", limit.as_millis()),
        "the runtime tries again; if it stays, look for what is slow in the agent's log of this pod",
    )
}

fn overloaded() -> Failure {
    Failure::new(
        code::AGENT_OVERLOADED,
        format!("the agent has {MAX_REQUESTS} requests under way"),
        "the runtime tries again; if it stays, look in the agent's log for what is slow",
    )
    .with_status(503)
}

#[cfg(test)]
mod tests;
