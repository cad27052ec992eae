//! Pods that started without rules: found by the API's own words about them, and
//! programmed, deleted or labelled (reference 7), as the settings say.
//!
//! [`broken`] owns how such a pod is known, [`calls`] what the API server is asked to
//! do, [`worker`] the order of it all. Besides, when programming is on: pods of the mesh
//! that run without rules when the agent starts are programmed at once, before anything
//! of them fails.

mod broken;
mod calls;
mod selector;
mod worker;

pub(crate) use broken::Signs;
pub(crate) use selector::{SelectorError, Selectors};
pub(crate) use worker::Worker;

/// What is done about a broken pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Its namespace is programmed.
    Repair,
    /// It is deleted.
    Delete,
    /// It is labelled.
    Label,
}

impl Mode {
    /// The first of them that is on; `None` when none is.
    pub(crate) fn choose(repair: bool, delete: bool, label: bool) -> Option<Self> {
        let all = [(repair, Self::Repair), (delete, Self::Delete), (label, Self::Label)];
        all.into_iter().find(|(on, _)| *on).map(|(_, mode)| mode)
    }

    /// As in the metric's label `type`.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Repair => "repair",
            Self::Delete => "delete",
            Self::Label => "label",
        }
    }
}

/// Result of an action, as in the metric's label `result`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It was done.
    Success,
    /// It was not.
    Fail,
    /// It had been done before.
    Skip,
}

impl Outcome {
    /// The label's value.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Fail => "fail",
            Self::Skip => "skip",
        }
    }
}

/// What the operator wants.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// What is done.
    pub(crate) mode: Mode,
    /// About which pods.
    pub(crate) signs: Signs,
    /// Key and value of the label.
    pub(crate) label: (String, String),
    /// This node, for events.
    pub(crate) node: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_mode_that_is_on_is_taken() {
        assert_eq!(Mode::choose(true, true, true), Some(Mode::Repair));
        assert_eq!(Mode::choose(false, true, true), Some(Mode::Delete));
        assert_eq!(Mode::choose(false, false, true), Some(Mode::Label));
        assert_eq!(Mode::choose(false, false, false), None);
    }
}
