//! A stand-in for the API server: small, scriptable, and it counts.
//!
//! It speaks as much of the API as the agent asks for: GET, LIST with pages, WATCH
//! with bookmarks, streamed lists, PATCH and DELETE with preconditions, selectors,
//! resource versions, metadata alone. Objects are put in by the test, or generated.
//! [`Fault`] makes it do on demand what a real server does in bad moments.
//!
//! It is a peer for tests, not an API server: nothing is validated, and all
//! permissions are granted unless a fault takes them away.

mod control;
mod fault;
mod generate;
mod http;
mod merge;
mod route;
mod select;
mod serve;
mod store;
mod watch;

pub use control::serve as serve_control;
pub use fault::{Fault, Rule};
pub use generate::{generated_namespace, generated_pod};

use anyhow::{Context, Result};
use serde_json::Value;
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use store::Store;
use sys::netns::{Netns, within};

/// What the server does when it is asked for a streamed list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WatchList {
    /// It streams (Kubernetes 1.32 and later, by default).
    #[default]
    Served,
    /// It refuses (1.19 to 1.31, by default).
    Refused,
    /// It takes no notice and never says that the list is complete (before 1.19).
    Ignored,
}

/// What it does besides.
#[derive(Debug, Clone)]
pub struct Options {
    /// Streamed lists.
    pub watch_list: WatchList,
    /// Time between bookmarks of a watch that asked for them.
    pub bookmarks: Duration,
    /// Lists that ask for any version are paged too, as from a server without a
    /// watch cache.
    pub always_paged: bool,
    /// Who does not bear this token gets 401.
    pub token: Option<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            watch_list: WatchList::default(),
            bookmarks: Duration::from_secs(60),
            always_paged: false,
            token: None,
        }
    }
}

/// A request that was made.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Asked {
    /// As in RBAC rules.
    pub verb: &'static str,
    /// As in RBAC rules, with a subresource: `pods/status`.
    pub resource: String,
    /// Group of the resource; empty for the core's.
    pub group: String,
    /// The object, where one is meant.
    pub name: String,
    /// The query.
    pub query: String,
    /// HTTP status of the answer; 0 when none was given.
    pub status: u16,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    stopping: AtomicBool,
}

#[derive(Debug)]
struct State {
    store: Store,
    options: Options,
    rules: Vec<Rule>,
    asked: Vec<Asked>,
    connections: Vec<TcpStream>,
    /// Watches from before this number end.
    watch_epoch: u64,
    /// Accept nobody.
    down: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }
}

/// A running stand-in. Ends when it is dropped.
#[derive(Debug)]
pub struct Server {
    shared: Arc<Shared>,
    address: SocketAddr,
    netns: Option<Netns>,
    listener: Mutex<Option<TcpListener>>,
}

impl Server {
    /// Starts on a free port of 127.0.0.1.
    ///
    /// # Errors
    /// When it cannot listen.
    pub fn start() -> Result<Self> {
        Self::listen(None, SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))
    }

    /// Starts on 127.0.0.1 of a network namespace.
    ///
    /// # Errors
    /// When it cannot listen.
    pub fn start_in(netns: &Netns) -> Result<Self> {
        let own = std::os::fd::AsFd::as_fd(netns).try_clone_to_owned()?;
        let netns = Netns::from_fd(own)?;
        Self::listen(Some(netns), SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))
    }

    /// Starts on an address.
    ///
    /// # Errors
    /// When it cannot listen.
    pub fn listen(netns: Option<Netns>, address: SocketAddr) -> Result<Self> {
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                store: Store::default(),
                options: Options::default(),
                rules: Vec::new(),
                asked: Vec::new(),
                connections: Vec::new(),
                watch_epoch: 0,
                down: false,
            }),
            changed: Condvar::new(),
            stopping: AtomicBool::new(false),
        });
        let mut server = Self { shared, address, netns, listener: Mutex::default() };
        server.address = server.open()?;
        Ok(server)
    }

    fn open(&self) -> Result<SocketAddr> {
        let bind = || TcpListener::bind(self.address);
        let listener = match &self.netns {
            Some(netns) => within(netns, bind)?,
            None => bind(),
        };
        let listener = listener.with_context(|| format!("listen on {}", self.address))?;
        let address = listener.local_addr()?;
        let (own, shared) = (listener.try_clone()?, Arc::clone(&self.shared));
        std::thread::Builder::new().name("api".to_owned()).spawn(move || accept(&own, &shared))?;
        *self.listener.lock().unwrap_or_else(PoisonError::into_inner) = Some(listener);
        Ok(address)
    }

    /// Where it listens, as a URL.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The port of it.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Changes what it can.
    pub fn set(&self, change: impl FnOnce(&mut Options)) {
        change(&mut self.shared.lock().options);
    }

    /// Makes an object be so: adds it or replaces it. A uid and a version are filled in.
    ///
    /// # Errors
    /// When it has no kind or no name, or of a kind that is not served.
    pub fn put(&self, object: Value) -> Result<()> {
        self.shared.lock().store.put(object)?;
        self.shared.changed.notify_all();
        Ok(())
    }

    /// Removes an object.
    pub fn remove(&self, resource: &str, namespace: &str, name: &str) {
        self.shared.lock().store.remove(resource, namespace, name);
        self.shared.changed.notify_all();
    }

    /// An object as it is.
    #[must_use]
    pub fn object(&self, resource: &str, namespace: &str, name: &str) -> Option<Value> {
        let state = self.shared.lock();
        state.store.get(resource, namespace, name).map(|object| (*object).clone())
    }

    /// All objects of a resource in a namespace.
    #[must_use]
    pub fn objects(&self, resource: &str, namespace: &str) -> Vec<Value> {
        let state = self.shared.lock();
        state.store.list(resource, namespace).iter().map(|object| (**object).clone()).collect()
    }

    /// Adds generated pods on a node, and generated namespaces.
    ///
    /// # Errors
    /// Never, as long as what is generated can be put.
    pub fn fill(&self, node: &str, pods: usize, namespaces: usize) -> Result<()> {
        for number in 0..namespaces {
            self.put(generated_namespace(number))?;
        }
        for number in 0..pods {
            self.put(generated_pod(node, number, namespaces))?;
        }
        Ok(())
    }

    /// From now on requests that a rule is about fail as it says. The newest rule
    /// that applies wins.
    pub fn fail(&self, rule: Rule) {
        self.shared.lock().rules.push(rule);
        self.shared.changed.notify_all();
    }

    /// No faults any more. Those that hang are let go.
    pub fn heal(&self) {
        self.shared.lock().rules.clear();
        self.shared.changed.notify_all();
    }

    /// Ends all watches in the middle.
    pub fn drop_watches(&self) {
        self.shared.lock().watch_epoch += 1;
        self.shared.changed.notify_all();
    }

    /// Forgets all history: watches end with 410, and so does whoever wants to go on.
    pub fn expire(&self) {
        self.shared.lock().store.compact();
        self.shared.changed.notify_all();
    }

    /// Stops listening and breaks all connections.
    ///
    /// # Errors
    /// When the listener cannot be reached.
    pub fn down(&self) -> Result<()> {
        self.shared.lock().down = true;
        drop(self.listener.lock().unwrap_or_else(PoisonError::into_inner).take());
        self.wake_acceptor();
        self.break_connections();
        // Refused, not reset: the acceptor's own descriptor must be closed as well.
        let end = Instant::now() + Duration::from_secs(5);
        while self.connect().is_ok() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Listens again, at the same address.
    ///
    /// # Errors
    /// When somebody else has it.
    pub fn up(&self) -> Result<()> {
        self.shared.lock().down = false;
        self.open().map(drop)
    }

    /// Requests since the last call of [`Self::forget`].
    #[must_use]
    pub fn asked(&self) -> Vec<Asked> {
        self.shared.lock().asked.clone()
    }

    /// How many of a verb and a resource.
    #[must_use]
    pub fn count(&self, verb: &str, resource: &str) -> usize {
        let state = self.shared.lock();
        state.asked.iter().filter(|asked| asked.verb == verb && asked.resource == resource).count()
    }

    /// Requests by verb and resource.
    #[must_use]
    pub fn counts(&self) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for asked in &self.shared.lock().asked {
            *counts.entry(format!("{} {}", asked.verb, asked.resource)).or_default() += 1;
        }
        counts
    }

    /// Counts from zero again.
    pub fn forget(&self) {
        self.shared.lock().asked.clear();
    }

    fn connect(&self) -> std::io::Result<TcpStream> {
        let connect = || TcpStream::connect_timeout(&self.address, Duration::from_millis(200));
        match &self.netns {
            Some(netns) => within(netns, connect).unwrap_or_else(|e| Err(std::io::Error::other(e))),
            None => connect(),
        }
    }

    /// The acceptor looks at what it should do when somebody comes.
    fn wake_acceptor(&self) {
        // It may be gone already.
        drop(self.connect());
    }

    fn break_connections(&self) {
        for connection in std::mem::take(&mut self.shared.lock().connections) {
            // Closed already: all the better.
            connection.shutdown(Shutdown::Both).ok();
        }
        self.shared.changed.notify_all();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::Relaxed);
        self.wake_acceptor();
        self.break_connections();
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    for connection in listener.incoming() {
        if shared.is_stopping() || shared.lock().down {
            return;
        }
        let Ok(connection) = connection else { continue };
        if let Ok(copy) = connection.try_clone() {
            let mut state = shared.lock();
            state.connections.retain(|known| known.take_error().is_ok_and(|e| e.is_none()));
            state.connections.push(copy);
        }
        let shared = Arc::clone(shared);
        // A connection that finds no thread is closed, as by a server out of them.
        let thread = std::thread::Builder::new().name("api-connection".to_owned());
        thread.spawn(move || serve::connection(connection, &shared)).ok();
    }
}

#[cfg(test)]
mod tests;
