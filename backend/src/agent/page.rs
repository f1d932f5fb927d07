//! Long answers in parts: as many items as a message holds.

use serde::Serialize;

/// What the items of an answer may be long, in bytes: a message, less room for what is around them.
pub(super) const ROOM: usize = sealblk_rpc::MAX_MESSAGE - (8 << 10);

/// Makes items for `names`, in their order, until the next one doesn't fit; the last one's name if
/// there are more. An item that alone doesn't fit is the first of its answer all the same: who makes
/// it sees to it that it does.
pub(super) fn fill<T: Serialize>(
    names: &[String],
    mut make: impl FnMut(&str) -> T,
    name: impl Fn(&T) -> &String,
) -> (Vec<T>, Option<String>) {
    let (mut items, mut used) = (Vec::new(), 0);
    for one in names {
        let item = make(one);
        used += len(&item);
        if used > ROOM && !items.is_empty() {
            let last = items.last().map(&name).cloned();
            return (items, last);
        }
        items.push(item);
    }
    (items, None)
}

/// How long it is as JSON.
pub(super) fn len(item: &impl Serialize) -> usize {
    serde_json::to_vec(item).map_or(usize::MAX, |bytes| bytes.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_hold_what_fits_and_together_are_the_whole() {
        let names: Vec<_> = (0..100).map(|n| format!("{n:03}")).collect();
        // Five fit.
        let make = |name: &str| (name.to_owned(), "x".repeat(ROOM / 5 - 100));
        let (mut all, mut rest) = (Vec::new(), names.as_slice());
        loop {
            let (items, next) = fill(rest, make, |(name, _)| name);
            assert!(!items.is_empty() && items.iter().map(len).sum::<usize>() <= ROOM);
            all.extend(items.into_iter().map(|(name, _)| name));
            let Some(next) = next else { break };
            let at = names.iter().position(|name| *name == next).unwrap();
            rest = &names[at + 1..];
        }
        assert_eq!(all, names);
    }
}
