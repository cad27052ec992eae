//! The sandbox that took the place of a captured one, under the pod's own uid, while
//! nobody asked us: a runtime made it with our plugin out of its chain.
//!
//! What the record says of the pod's addresses does not count, since by now another pod
//! may have them. What the API says of them does; where nobody says any, the pod's
//! processes tell by their cgroup.

use super::{Place, PlaceError, Survey, Wanted};
use crate::hosts::Hosts;
use crate::record::Record;
use crate::source::follow::Told;

/// Where the pod of a record runs whose namespace is gone; `None` where it does not.
///
/// # Errors
/// When more than one namespace may be it.
pub(crate) fn find(
    told: &Told,
    record: &Record,
    survey: &Survey,
    hosts: &Hosts,
) -> Result<Option<Place>, PlaceError> {
    let mut uids = told.uids();
    // That of the runtime, where a manifest has none.
    uids.extend(record.pod.uid.clone().filter(|uid| !uids.contains(uid)));
    let found = match told.status().map(|status| status.addresses) {
        Some(addresses @ [_, ..]) => {
            let wanted = Wanted { uids: &uids, addresses, recorded: &[], hosts: hosts.all() };
            survey.find(&wanted)
        }
        _ => survey.find_owned(&uids),
    };
    match found {
        // By a plugin's word, too.
        Ok(place) => Ok((!hosts.contains(place.netns.id())).then_some(place)),
        Err(PlaceError::Nowhere { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The pod that the source has is the one that was captured.
pub(crate) fn is_same(told: &Told, record: &Record) -> bool {
    let uid = record.pod.uid.as_ref();
    uid.is_none_or(|uid| told.facts().uid.is_none() || told.uids().contains(uid))
}
