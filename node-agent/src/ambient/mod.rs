//! Ambient capture: the state machine of `ambient`, and the effects that it asks for.
//!
//! [`driver`] is the one thread that owns the machine; steps run side by side
//! ([`steps`], [`jobs`]), each in a file of its own: [`find`], [`program`], [`probes`],
//! [`annotate`]. [`roster`] knows the pods, [`ztunnel`] is the socket, [`subject`] turns
//! pods into the machine's facts, [`Figures`] counts. The rest of the agent has
//! [`Ambient`].

mod annotate;
mod audit;
mod driver;
mod find;
mod jobs;
mod look;
mod node;
mod options;
mod probes;
mod program;
mod report;
mod roster;
mod speaker;
mod steps;
mod subject;
mod timers;
mod ztunnel;

pub(crate) use find::Named;
pub(crate) use look::Look;
pub(crate) use node::Node;
pub(crate) use options::Options;
pub(crate) use program::NOT_PROVED;
pub(crate) use subject::recorded_plan;
pub(crate) use ztunnel::ServeError;

use crate::failure::causes;
use crate::health::Beat;
use crate::metrics::figures::Figures;
use crate::record::Record;
use crate::source::kubernetes::object::PodName;
use ::ambient::action::Refusal;
use ::ambient::config::Config;
use ::ambient::machine::Machine;
use driver::{Call, Driver, Input};
use jobs::Held;
use probes::Probes;
use redirect::ambient::{Ipv6, plan};
use redirect::pod::Pod;
use redirect::sidecar::PlanError;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel, sync_channel};
use std::time::{Duration, Instant};
use sys::backend::Diff;
use sys::netns::Netns;
use ztunnel::Ztunnels;

/// Kept of a request's time for the answer's way through the driver.
const MARGIN: Duration = Duration::from_millis(60);

/// The rest of the agent's way to it.
#[derive(Debug)]
pub(crate) struct Ambient {
    inputs: Sender<Input>,
    node: Arc<Node>,
    figures: Arc<Figures>,
    probes: Arc<Probes>,
}

/// A sandbox that is to be captured.
#[derive(Debug)]
pub(crate) struct Sandbox {
    /// `CNI_CONTAINERID`.
    pub(crate) id: String,
    /// `CNI_IFNAME`.
    pub(crate) interface: String,
    /// `CNI_NETNS`.
    pub(crate) path: String,
    /// The namespace; not the host's.
    pub(crate) netns: Netns,
    /// Addresses of prevResult.
    pub(crate) addresses: Vec<IpAddr>,
}

/// Why a sandbox was not captured.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AddError {
    /// ztunnel cannot be captured for itself.
    #[error("the pod is a ztunnel")]
    Ztunnel,
    /// The source lost it meanwhile.
    #[error("the pod is not known any more")]
    Unknown,
    /// An annotation is wrong.
    #[error(transparent)]
    Annotation(#[from] PlanError),
    /// The machine says why.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The driver did not answer.
    #[error("the agent's own defect: no answer about the pod in time")]
    Silent,
}

impl Ambient {
    /// Serves ztunnel, and captures from now on. Must be called in the runtime.
    ///
    /// # Errors
    /// When there is no socket or no thread.
    pub(crate) fn start(
        node: Node,
        figures: Arc<Figures>,
        beat: Arc<Beat>,
    ) -> Result<Arc<Self>, ServeError> {
        let (inputs, receiver) = channel();
        let config = Config::default();
        let node = Arc::new(node);
        let (socket, own) = (&node.options.socket, Arc::clone(&figures));
        let ztunnels = Ztunnels::serve(socket, config.window, inputs.clone(), own)?;
        let found = inputs.clone();
        let backend = Arc::clone(&node.backend);
        let probes = Probes::start(backend, &node.options, Arc::clone(&figures), move |ip| {
            drop(found.send(Input::ProbeFound(ip)));
        });
        let probes = probes.map_err(ServeError::Start)?;
        let driver = Driver::new(
            Arc::clone(&node),
            Machine::new(config),
            (inputs.clone(), receiver),
            (ztunnels, Arc::clone(&probes)),
            Arc::clone(&figures),
            tokio::runtime::Handle::current(),
        );
        if let Some(watch) = &node.watch {
            let notices = inputs.clone();
            watch.follow(move |notice| notices.send(Input::Notice(notice)).is_ok());
        }
        let changes = inputs.clone();
        node.source
            .follow(move |change| changes.send(Input::Change(change)).is_ok())
            .map_err(ServeError::Start)?;
        std::thread::Builder::new()
            .name("ambient".to_owned())
            .spawn(move || driver.run(&beat))
            .map_err(ServeError::Start)?;
        Ok(Arc::new(Self { inputs, node, figures, probes }))
    }

    /// Captures a pod's new sandbox; returns when that is done and seen, or why not.
    ///
    /// Blocks, at most until `deadline`.
    ///
    /// # Errors
    /// See [`AddError`].
    pub(crate) fn add(
        &self,
        pod: &Pod,
        sandbox: Sandbox,
        deadline: Instant,
    ) -> Result<(), AddError> {
        let name = PodName { namespace: pod.namespace.clone(), name: pod.name.clone() };
        // The name may be the next one's by now.
        let told = self.node.source.told(&name).filter(|told| told.facts().uid == pod.uid);
        let told = told.ok_or(AddError::Unknown)?;
        if subject::is_ztunnel(told.facts(), &self.node.options) {
            return Err(AddError::Ztunnel);
        }
        plan(told.facts(), &self.node.options.capture, Ipv6::Present)?;
        let (reply, answer) = sync_channel(1);
        let Sandbox { id, interface, path, netns, addresses } = sandbox;
        let held = Held { netns: Arc::new(netns), path, interface, sandbox: Some(id.clone()) };
        let expiry = deadline.checked_sub(MARGIN).unwrap_or(deadline);
        let call = Call { told, sandbox: id, held, ips: addresses, deadline: expiry, reply };
        self.inputs.send(Input::Add(Box::new(call))).map_err(|_| AddError::Silent)?;
        let left = deadline.saturating_duration_since(Instant::now());
        answer.recv_timeout(left).map_err(|_| AddError::Silent)??;
        Ok(())
    }

    /// How the calling thread's namespace differs from what a record says of it.
    ///
    /// # Errors
    /// When the kernel cannot be asked; the text is one line.
    pub(crate) fn observe(&self, record: &Record) -> Result<Diff, String> {
        let ipv6 = sys::routing::ipv6().map_err(|error| causes(&error))?;
        self.node.backend.observe(&recorded_plan(record, &self.node.options, ipv6))
    }

    /// How things are; `None` when the driver does not say within this time.
    pub(crate) fn look(&self, limit: Duration) -> Option<Look> {
        let (reply, answer) = sync_channel(1);
        self.inputs.send(Input::Look(reply)).ok()?;
        answer.recv_timeout(limit).ok()
    }

    /// Un-enrols every pod, until the agent starts anew; [`Self::look`] tells how far
    /// that is. False when nobody is there to do it.
    pub(crate) fn drain(&self) -> bool {
        self.inputs.send(Input::Drain).is_ok()
    }

    /// How the exemption of kubelet's probes is. Blocks.
    ///
    /// # Errors
    /// When there is none (yet), or the kernel cannot be asked; the text is one line.
    pub(crate) fn exemption(&self) -> Result<sys::hostprobe::Status, String> {
        self.probes.status()
    }

    /// Takes the host's rules out, for good; returns when that is done. Blocks.
    ///
    /// # Errors
    /// When something stays; the text is one line.
    pub(crate) fn leave_host(&self) -> Result<(), String> {
        self.probes.remove(&self.node.backend)
    }

    /// The runtime made a sandbox for a pod of this uid, which is not captured: should
    /// that change, it need not be looked for.
    pub(crate) fn passed(&self, uid: &str, sandbox: Named) {
        // Fails only at the end of the process.
        drop(self.inputs.send(Input::Passed(uid.to_owned(), sandbox)));
    }

    /// The runtime took a sandbox down.
    pub(crate) fn sandbox_gone(&self, id: &str) {
        // Fails only at the end of the process.
        drop(self.inputs.send(Input::SandboxGone(id.to_owned())));
    }

    /// Its figures.
    pub(crate) fn figures(&self) -> &Arc<Figures> {
        &self.figures
    }
}
