//! The real `nft` as the judge: what it loads from our text and what we write must
//! be the same rules, by its own listing and by our reading.

use super::{apply, fresh, listing, nft, observe, plans};

#[test]
fn writes_what_nft_would() {
    for (name, want) in plans::compiled() {
        let expected = fresh(|| {
            nft(&redirect::nft::render(&want));
            listing()
        });
        let found = fresh(|| {
            apply(&want);
            listing()
        });
        assert!(expected.lines().count() > 10, "{name}: {expected}");
        assert_eq!(found, expected, "{name}");
    }
}

#[test]
fn reads_what_nft_writes() {
    for (name, want) in plans::compiled() {
        fresh(|| {
            nft(&redirect::nft::render(&want));
            crate::routing::ensure(&want.routing).unwrap();
            assert_eq!(observe(&want), "", "{name}");
        });
    }
}

#[test]
fn plans_differ_from_one_another() {
    let all = plans::compiled();
    for (i, (name, want)) in all.iter().enumerate() {
        fresh(|| {
            apply(want);
            for (j, (other, unwanted)) in all.iter().enumerate() {
                let equal = observe(unwanted).is_empty();
                assert!(equal == (i == j) || want == unwanted, "{name} and {other}");
            }
        });
    }
}
