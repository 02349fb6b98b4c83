//! Whether what clients saw of transactions can have happened one after the other, and in the order
//! that they saw.
//!
//! Each transaction reads lists and appends numbers to lists, each number once. So a list that was
//! read says which transactions it has seen, and in which order they were: the dependencies between
//! all of them follow from what was read, and a history that is no cycle is strictly serializable.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    time::Instant,
};

/// One transaction as its client saw it.
#[derive(Debug, Clone)]
pub struct Seen {
    /// When it was asked for.
    pub began: Instant,
    /// When it was acknowledged; none when it was not, and may have happened or not.
    pub ended: Option<Instant>,
    /// What it read, before it appended.
    pub reads: BTreeMap<String, Vec<u64>>,
    /// What it appended, in this order.
    pub appends: Vec<(String, u64)>,
}

/// Looks whether `history` can have happened one after the other, and ended with `lists`.
///
/// # Errors
/// What cannot be.
pub fn strictly_serializable(
    history: &[Seen],
    lists: &BTreeMap<String, Vec<u64>>,
) -> Result<(), String> {
    let mut writer: HashMap<(&str, u64), usize> = HashMap::new();
    for (at, seen) in history.iter().enumerate() {
        for (key, number) in &seen.appends {
            writer.insert((key, *number), at);
        }
    }
    let of = |key: &str, number: u64| writer.get(&(key, number)).copied();
    for (key, list) in lists {
        let mut known = HashSet::new();
        for number in list {
            if of(key, *number).is_none() {
                return Err(format!("{number} in `{key}` was appended by nobody"));
            }
            if !known.insert(number) {
                return Err(format!("{number} is in `{key}` twice"));
            }
        }
    }
    // What happened: what was acknowledged, and what left something behind.
    let happened = |seen: &Seen| {
        let is_there = |(key, number): &(String, u64)| {
            lists.get(key).is_some_and(|list| list.contains(number))
        };
        let there = seen
            .appends
            .iter()
            .filter(|append| is_there(append))
            .count();
        if seen.ended.is_some() && there < seen.appends.len() {
            return Err(format!("acknowledged, and not there: {seen:?}"));
        }
        if there > 0 && there < seen.appends.len() {
            return Err(format!("happened in part: {seen:?}"));
        }
        Ok(seen.ended.is_some() || there > 0)
    };
    let mut graph = Graph::new(history.len());
    for (key, list) in lists {
        for pair in list.windows(2) {
            if let (Some(one), Some(next)) = (of(key, pair[0]), of(key, pair[1])) {
                graph.before(one, next);
            }
        }
    }
    for (at, seen) in history.iter().enumerate() {
        if !happened(seen)? || seen.ended.is_none() {
            continue;
        }
        for (key, read) in &seen.reads {
            let list = lists.get(key).map(Vec::as_slice).unwrap_or_default();
            if !list.starts_with(read) {
                return Err(format!(
                    "`{key}` was read as {read:?}, and is {list:?} in the end"
                ));
            }
            if let Some(last) = read.last().and_then(|last| of(key, *last)) {
                graph.before(last, at);
            }
            if let Some(next) = list.get(read.len()).and_then(|next| of(key, *next)) {
                graph.before(at, next);
            }
        }
    }
    // Time: what was acknowledged was before all that was asked for later. A chain of instants
    // stands between them.
    let mut ends: Vec<_> = history
        .iter()
        .enumerate()
        .filter_map(|(at, seen)| seen.ended.map(|ended| (ended, at)))
        .collect();
    ends.sort();
    let instants: Vec<_> = ends.iter().map(|_| graph.node()).collect();
    for pair in instants.windows(2) {
        graph.before(pair[0], pair[1]);
    }
    for ((_, at), instant) in ends.iter().zip(&instants) {
        graph.before(*at, *instant);
    }
    for (at, seen) in history.iter().enumerate() {
        let earlier = ends.partition_point(|(ended, _)| *ended < seen.began);
        if earlier > 0 && happened(seen)? {
            graph.before(instants[earlier - 1], at);
        }
    }
    match graph.cycle() {
        None => Ok(()),
        Some(cycle) => {
            let named: Vec<_> = cycle
                .iter()
                .filter_map(|at| history.get(*at))
                .map(|seen| format!("{seen:?}"))
                .collect();
            Err(format!(
                "each of these was before the next, and the last before the first:\n{}",
                named.join("\n")
            ))
        }
    }
}

/// Which was before which.
struct Graph(Vec<Vec<usize>>);

impl Graph {
    fn new(nodes: usize) -> Self {
        Self(vec![Vec::new(); nodes])
    }

    fn node(&mut self) -> usize {
        self.0.push(Vec::new());
        self.0.len() - 1
    }

    fn before(&mut self, one: usize, next: usize) {
        if one != next {
            self.0[one].push(next);
        }
    }

    /// A cycle, if there is one.
    fn cycle(&self) -> Option<Vec<usize>> {
        // 0: not seen, 1: on the path, 2: done.
        let mut state = vec![0_u8; self.0.len()];
        for start in 0..self.0.len() {
            if state[start] != 0 {
                continue;
            }
            let mut path = vec![(start, 0)];
            state[start] = 1;
            while let Some((node, next)) = path.last_mut() {
                let node = *node;
                match self.0[node].get(*next) {
                    None => {
                        state[node] = 2;
                        path.pop();
                    }
                    Some(&to) => {
                        *next += 1;
                        match state[to] {
                            0 => {
                                state[to] = 1;
                                path.push((to, 0));
                            }
                            1 => {
                                let nodes: Vec<_> = path.iter().map(|(node, _)| *node).collect();
                                let from = nodes.iter().position(|node| *node == to)?;
                                return Some(nodes[from..].to_vec());
                            }
                            _ => {}
                        }
                    }
                }
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// A transaction from one moment to another, in milliseconds.
    fn seen(from: u64, to: Option<u64>, reads: &[(&str, &[u64])], appends: &[(&str, u64)]) -> Seen {
        static START: std::sync::LazyLock<Instant> = std::sync::LazyLock::new(Instant::now);
        let at = |ms| *START + Duration::from_millis(ms);
        Seen {
            began: at(from),
            ended: to.map(at),
            reads: reads
                .iter()
                .map(|(key, list)| ((*key).to_owned(), list.to_vec()))
                .collect(),
            appends: appends
                .iter()
                .map(|(key, number)| ((*key).to_owned(), *number))
                .collect(),
        }
    }

    fn lists(lists: &[(&str, &[u64])]) -> BTreeMap<String, Vec<u64>> {
        lists
            .iter()
            .map(|(key, list)| ((*key).to_owned(), list.to_vec()))
            .collect()
    }

    #[track_caller]
    fn refused(history: &[Seen], end: &[(&str, &[u64])], why: &str) {
        let error = strictly_serializable(history, &lists(end)).expect_err("it cannot be");
        assert!(error.contains(why), "{error}");
    }

    #[test]
    fn one_after_the_other_is_taken_also_where_they_overlapped() {
        let history = [
            seen(0, Some(10), &[("x", &[])], &[("x", 1)]),
            seen(5, Some(20), &[("x", &[1])], &[("y", 2)]),
            seen(5, Some(20), &[("x", &[]), ("y", &[])], &[]),
            seen(30, None, &[], &[("x", 3)]),
            seen(40, Some(50), &[("x", &[1, 3]), ("y", &[2])], &[]),
        ];
        let end = lists(&[("x", &[1, 3]), ("y", &[2])]);
        assert_eq!(strictly_serializable(&history, &end), Ok(()));
    }

    #[test]
    fn write_skew_is_found() {
        // Each of them read what the other one had not written yet.
        let history = [
            seen(0, Some(10), &[("x", &[]), ("y", &[])], &[("x", 1)]),
            seen(0, Some(10), &[("x", &[]), ("y", &[])], &[("y", 2)]),
        ];
        refused(&history, &[("x", &[1]), ("y", &[2])], "before the next");
    }

    #[test]
    fn a_lost_write_a_torn_one_and_one_of_nobody_are_found() {
        let one = seen(0, Some(10), &[], &[("x", 1), ("y", 2)]);
        refused(
            std::slice::from_ref(&one),
            &[("x", &[]), ("y", &[])],
            "not there",
        );
        let unknown = Seen { ended: None, ..one };
        refused(&[unknown], &[("x", &[1]), ("y", &[])], "in part");
        refused(&[], &[("x", &[1])], "by nobody");
    }

    #[test]
    fn a_read_of_what_was_undone_and_a_stale_read_are_found() {
        let dirty = [
            seen(0, None, &[], &[("x", 1)]),
            seen(0, Some(10), &[("x", &[1])], &[]),
        ];
        refused(&dirty, &[("x", &[])], "is [] in the end");
        // Serializable, and not in the order of time.
        let stale = [
            seen(0, Some(10), &[], &[("x", 1)]),
            seen(20, Some(30), &[("x", &[])], &[]),
        ];
        refused(&stale, &[("x", &[1])], "before the next");
    }

    #[test]
    fn reads_that_see_two_writes_in_two_orders_are_found() {
        let history = [
            seen(0, Some(100), &[], &[("x", 1)]),
            seen(0, Some(100), &[], &[("y", 2)]),
            seen(0, Some(100), &[("x", &[1]), ("y", &[])], &[]),
            seen(0, Some(100), &[("x", &[]), ("y", &[2])], &[]),
        ];
        refused(&history, &[("x", &[1]), ("y", &[2])], "before the next");
    }
}
