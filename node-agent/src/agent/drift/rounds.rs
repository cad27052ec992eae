//! When which sidecar pod is looked at: all of them in each period, one of them when
//! something is heard of it. Looks and repairs are made by a few threads, so that a pod
//! whose repair is slow delays no other.

use super::{LIMIT, Look, Looked, Past};
use crate::agent::Agent;
use crate::attention::Attention;
use crate::failure::causes;
use crate::health::Beat;
use crate::metrics::figures::Figures;
use crate::place::{self, PlaceError, Survey};
use crate::record::SandboxId;
use ::ambient::action::Standing;
use ::ambient::id::PodUid;
use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};
use sys::netns::NetnsId;
use sys::watch::{Notice, Watch};

/// Looks and repairs at a time.
const AT_ONCE: usize = 4;

/// How often the thread says that it lives.
const TICK: Duration = Duration::from_secs(1);

/// Longest time of a look with its repair; after it something hangs.
const HANGING: Duration = Duration::from_secs(15 * LIMIT.as_secs());

/// What the rounds are told.
#[derive(Debug)]
pub(in crate::agent) enum Word {
    /// By the kernel.
    Notice(Notice),
    /// A pod was captured, again perhaps.
    Captured(SandboxId),
    /// A look is over.
    Looked(SandboxId, Looked),
}

/// What is looked with.
#[derive(Debug, Clone)]
pub(super) struct Tools {
    pub(super) figures: Arc<Figures>,
    pub(super) watch: Option<Arc<Watch>>,
}

/// A look at the host's processes that several looks at pods share, made on need.
#[derive(Debug, Default)]
pub(super) struct SharedSurvey(Mutex<Option<Option<Survey>>>);

impl SharedSurvey {
    /// Asks it something; `None` when the processes cannot be listed.
    pub(super) fn ask<T>(
        &self,
        hosts: &[NetnsId],
        question: impl FnOnce(&Survey) -> T,
    ) -> Option<T> {
        let mut taken = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let survey = taken.get_or_insert_with(|| {
            let survey = Survey::take(&place::root(), hosts);
            let failed = |error: &PlaceError| {
                tracing::error!(reason = %causes(error), "cannot look for the namespaces of sidecar pods");
            };
            survey.inspect_err(failed).ok()
        });
        survey.as_ref().map(question)
    }
}

/// A look to be made.
struct Job {
    agent: Arc<Agent>,
    id: SandboxId,
    past: Past,
    /// When a change was heard of.
    since: Option<Instant>,
    dead: bool,
    survey: Arc<SharedSurvey>,
}

/// What is known of a pod.
#[derive(Debug, Default)]
struct Row {
    past: Past,
    netns: Option<NetnsId>,
    key: Option<PodUid>,
    /// Since when it is looked at.
    looking: Option<Instant>,
    /// Its namespace is dead, and a record is left: in each period it is asked whether the
    /// pod runs in another one.
    dead: bool,
}

/// See the module.
struct Rounds {
    agent: Weak<Agent>,
    figures: Arc<Figures>,
    words: Receiver<Word>,
    jobs: Sender<Job>,
    rows: HashMap<SandboxId, Row>,
    attention: Attention<SandboxId>,
    /// Changed namespaces that no row has: a look that is under way may say whose one
    /// is.
    strays: HashSet<NetnsId>,
    period: Duration,
    due: Instant,
}

impl Agent {
    /// Looks at all captured sidecar pods from now on, on threads of their own that end
    /// with the agent. Without a watch nothing is heard between the periods.
    ///
    /// # Errors
    /// When no thread can be had.
    pub(crate) fn keep_captured(
        self: &Arc<Self>,
        figures: Arc<Figures>,
        watch: Option<Arc<Watch>>,
        period: Duration,
        beat: Arc<Beat>,
    ) -> io::Result<()> {
        let (sender, words) = channel();
        let (jobs, todo) = channel();
        if let Some(watch) = &watch {
            // For what an ADD wrote before its namespace was watched. Called once, at
            // the start.
            let _ = self.rounds.set(sender.clone());
            let told = sender.clone();
            watch.follow(move |notice| told.send(Word::Notice(notice)).is_ok());
        }
        let todo = Arc::new(Mutex::new(todo));
        let tools = Tools { figures: Arc::clone(&figures), watch };
        for _ in 0..AT_ONCE {
            let (todo, done, tools) = (Arc::clone(&todo), sender.clone(), tools.clone());
            let thread = std::thread::Builder::new().name("drift-look".to_owned());
            thread.spawn(move || work(&todo, &done, &tools))?;
        }
        let rounds = Rounds {
            agent: Arc::downgrade(self),
            figures,
            words,
            jobs,
            rows: HashMap::new(),
            attention: Attention::default(),
            strays: HashSet::new(),
            period,
            // Now: what was changed while no agent was there.
            due: Instant::now(),
        };
        std::thread::Builder::new().name("drift".to_owned()).spawn(move || rounds.run(&beat))?;
        Ok(())
    }

    /// A pod's rules were written, and its record.
    pub(in crate::agent) fn was_captured(&self, id: &SandboxId) {
        if let Some(rounds) = self.rounds.get() {
            // Nobody listens at the end of the process.
            drop(rounds.send(Word::Captured(id.clone())));
        }
    }
}

/// Makes looks for as long as any are asked for.
fn work(todo: &Mutex<Receiver<Job>>, done: &Sender<Word>, tools: &Tools) {
    loop {
        let next = todo.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(Job { agent, id, past, since, dead, survey }) = next else { return };
        let (past, survey) = (&past, &*survey);
        let looked = agent.look_at(&Look { id: &id, past, since, dead, survey, tools });
        drop(done.send(Word::Looked(id, looked)));
    }
}

impl Rounds {
    fn run(mut self, beat: &Beat) {
        loop {
            let now = Instant::now();
            if self.rows.values().all(|row| row.looking.is_none_or(|at| now < at + HANGING)) {
                beat.beat();
            }
            let next = self.attention.due().map_or(self.due, |due| due.min(self.due));
            let patience = next.saturating_duration_since(now).min(TICK);
            match self.words.recv_timeout(patience) {
                Ok(word) => self.take(word),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            let Some(agent) = self.agent.upgrade() else { return };
            self.look_at_called(&agent);
            if Instant::now() >= self.due {
                self.look_at_all(&agent);
                self.due = Instant::now() + self.period;
            }
        }
    }

    fn take(&mut self, word: Word) {
        let now = Instant::now();
        match word {
            Word::Notice(Notice::Changed(netns)) => {
                let of = self.rows.iter().filter(|(_, row)| row.netns == Some(netns));
                let ids: Vec<SandboxId> = of.map(|(id, _)| id.clone()).collect();
                if ids.is_empty() && self.is_looking() {
                    self.strays.insert(netns);
                }
                ids.into_iter().for_each(|id| self.attention.call(id, now));
            }
            Word::Notice(Notice::Lost) => {
                for id in self.rows.keys() {
                    self.attention.suspect(id.clone(), now);
                }
            }
            Word::Notice(Notice::Dead(netns)) => {
                for (id, row) in self.rows.iter_mut().filter(|(_, row)| row.netns == Some(netns)) {
                    row.dead = true;
                    row.past.well = None;
                    self.attention.forget(id);
                    stands_outside(&self.figures, row);
                }
            }
            Word::Captured(id) => {
                self.rows.entry(id.clone()).or_default().dead = false;
                self.attention.call_later(id, now);
            }
            Word::Looked(id, looked) => {
                self.looked(&id, looked, now);
                if !self.is_looking() {
                    self.strays.clear();
                }
            }
        }
    }

    fn looked(&mut self, id: &SandboxId, looked: Looked, now: Instant) {
        let Some(row) = self.rows.get_mut(id) else { return };
        row.looking = None;
        match looked {
            Looked::NotOurs | Looked::Superseded => self.forget(id),
            Looked::Later => {}
            Looked::NotThere => {
                stands_outside(&self.figures, row);
                (row.key, row.past) = (None, Past::default());
            }
            Looked::Elsewhere { key, past, again } => {
                (row.key, row.past) = (Some(key), past);
                if again {
                    self.attention.call_later(id.clone(), now);
                }
            }
            Looked::At { key, netns, past } => {
                let is_new = row.netns.replace(netns) != Some(netns);
                (row.key, row.past) = (Some(key), past);
                if row.dead {
                    stands_outside(&self.figures, row);
                } else if is_new && self.strays.contains(&netns) {
                    self.attention.call(id.clone(), now);
                }
            }
        }
    }

    fn is_looking(&self) -> bool {
        self.rows.values().any(|row| row.looking.is_some())
    }

    fn look_at_called(&mut self, agent: &Arc<Agent>) {
        let now = Instant::now();
        let survey = Arc::default();
        for (id, since) in self.attention.take(now) {
            if self.rows.get(&id).is_some_and(|row| row.looking.is_some()) {
                // Once more, when that is over.
                self.attention.call(id, now);
            } else {
                self.look(agent, id, Some(since), &survey);
            }
        }
    }

    fn look_at_all(&mut self, agent: &Arc<Agent>) {
        let ids: HashSet<SandboxId> = agent.records.ids().into_iter().collect();
        let gone = self.rows.iter().filter(|(id, row)| row.looking.is_none() && !ids.contains(*id));
        for id in gone.map(|(id, _)| id.clone()).collect::<Vec<_>>() {
            self.forget(&id);
        }
        let survey = Arc::default();
        for id in ids {
            let row = self.rows.get(&id);
            if row.is_none_or(|row| row.looking.is_none()) {
                let since = self.attention.begin(&id, Instant::now());
                self.look(agent, id, since, &survey);
            }
        }
    }

    fn look(
        &mut self,
        agent: &Arc<Agent>,
        id: SandboxId,
        since: Option<Instant>,
        survey: &Arc<SharedSurvey>,
    ) {
        let row = self.rows.entry(id.clone()).or_default();
        row.looking = Some(Instant::now());
        let (agent, survey) = (Arc::clone(agent), Arc::clone(survey));
        let (past, dead) = (row.past.clone(), row.dead);
        // Its end, if the threads have ended, is that of the process.
        drop(self.jobs.send(Job { agent, id, past, since, dead, survey }));
    }

    fn forget(&mut self, id: &SandboxId) {
        self.attention.forget(id);
        if let Some(row) = self.rows.remove(id) {
            stands_outside(&self.figures, &row);
        }
    }
}

/// It is nobody's concern any more.
fn stands_outside(figures: &Figures, row: &Row) {
    if let Some(key) = &row.key {
        figures.stands(key, Standing::Outside);
    }
}
