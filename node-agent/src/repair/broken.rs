//! How a broken pod is known: one that was started without rules, whose validation
//! container therefore ended badly and was started again (reference 7.2).

use super::selector::Selectors;
use crate::source::kubernetes::object::{InitStatus, NodePod};

/// Signs of a broken pod, as the settings name them.
#[derive(Debug, Clone)]
pub(crate) struct Signs {
    /// Annotation that it has; empty for none.
    pub(crate) annotation: String,
    /// The init container that failed; empty for any.
    pub(crate) container: String,
    /// Its last message; empty for any.
    pub(crate) message: String,
    /// Its exit code; 0 for any.
    pub(crate) code: i64,
    /// Which pods are looked at.
    pub(crate) selectors: Selectors,
}

impl Signs {
    /// Whether all of them are there. The first failure is not enough: the kubelet
    /// has to have started the container again, or be about to.
    pub(crate) fn are_seen(&self, pod: &NodePod) -> bool {
        self.is_injected(pod) && pod.init.iter().any(|status| self.is_failed(status))
    }

    /// Whether it is a pod that is looked at, and has the annotation.
    pub(crate) fn is_injected(&self, pod: &NodePod) -> bool {
        (self.annotation.is_empty() || pod.facts.annotation(&self.annotation).is_some())
            && self.selectors.select(pod)
    }

    fn is_failed(&self, status: &InitStatus) -> bool {
        let Some(last) = &status.last else { return false };
        (self.container.is_empty() || status.name == self.container)
            && !status.completed
            && (self.message.trim().is_empty() || last.message.trim() == self.message.trim())
            && (self.code == 0 || i64::from(last.code) == self.code)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::kubernetes::object::{Ended, Phase};
    use redirect::pod::Pod;

    fn signs() -> Signs {
        Signs {
            annotation: "sidecar.istio.io/status".into(),
            container: "istio-validation".into(),
            message: String::new(),
            code: 126,
            selectors: Selectors::default(),
        }
    }

    fn status(name: &str, completed: bool, last: Option<(i32, &str)>) -> InitStatus {
        let last = last.map(|(code, message)| Ended { code, message: message.into() });
        InitStatus { name: name.into(), completed, last }
    }

    fn pod(init: Vec<InitStatus>) -> NodePod {
        let annotations = [("sidecar.istio.io/status".to_owned(), String::new())].into();
        NodePod {
            facts: Pod { name: "p".into(), namespace: "n".into(), annotations, ..Pod::default() },
            version: "1".into(),
            phase: Phase::Pending,
            deleting: false,
            addresses: Vec::new(),
            captured: None,
            init,
            workload: crate::source::workload::Workload::default(),
        }
    }

    #[test]
    fn a_container_that_failed_before_and_is_not_done_is_the_sign() {
        let own = "istio-validation";
        for (what, init, broken) in [
            ("failed before", vec![status(own, false, Some((126, "")))], true),
            ("any message", vec![status(own, false, Some((126, "no rules")))], true),
            ("done by now", vec![status(own, true, Some((126, "")))], false),
            ("the first failure alone", vec![status(own, false, None)], false),
            ("another code", vec![status(own, false, Some((1, "")))], false),
            ("another container", vec![status("setup", false, Some((126, "")))], false),
            ("no status yet", vec![], false),
            (
                "one of two",
                vec![status("setup", true, None), status(own, false, Some((126, "")))],
                true,
            ),
            (
                "a failed one and one of the name",
                vec![status("setup", false, Some((126, ""))), status(own, true, None)],
                false,
            ),
        ] {
            assert_eq!(signs().are_seen(&pod(init)), broken, "{what}");
        }
    }

    #[test]
    fn empty_settings_take_anything() {
        let failed = |code, message| pod(vec![status("setup", false, Some((code, message)))]);
        let any = Signs { container: String::new(), ..signs() };
        assert!(any.are_seen(&failed(126, "")) && !any.are_seen(&failed(1, "")));
        let any = Signs { code: 0, ..any };
        assert!(any.are_seen(&failed(1, "")) && any.are_seen(&failed(0, "")));
        let message = Signs { message: " no\nrules ".into(), ..any.clone() };
        assert!(message.are_seen(&failed(1, "no\nrules\n")) && !message.are_seen(&failed(1, "no")));
        let blank = Signs { message: " ".into(), ..any };
        assert!(blank.are_seen(&failed(1, "x")));
    }

    #[test]
    fn the_annotation_counts_whatever_it_says() {
        let failed = vec![status("istio-validation", false, Some((126, "")))];
        let mut plain = pod(failed);
        assert!(signs().are_seen(&plain));
        plain.facts.annotations.clear();
        assert!(!signs().are_seen(&plain));
        assert!(Signs { annotation: String::new(), ..signs() }.are_seen(&plain));
    }
}
