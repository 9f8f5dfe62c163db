//! What may come of operations: each that succeeded has done what it says to what was there, each that failed
//! has changed nothing or says something that was in doubt, and no acknowledged byte is lost.

use std::collections::{BTreeMap, BTreeSet};

use super::snapshot::{FileIs, Shown, Snapshot, is_below, parent};
use super::steps::Step;

/// An operation that has ended.
#[derive(Debug, Clone)]
pub(super) struct Done {
    pub(super) step: Step,
    pub(super) shown: Shown,
    /// Its mount knows nothing that it has not just asked for.
    pub(super) strict: bool,
    /// A request of it may have been lost, or be on its way still.
    pub(super) doubtful: bool,
}

/// Errors of who went by what is no longer so.
const OUTDATED: [i32; 7] = [
    libc::ENOENT,
    libc::EEXIST,
    libc::ENOTDIR,
    libc::EISDIR,
    libc::ENOTEMPTY,
    libc::ESTALE,
    libc::EBUSY,
];

/// Contents that were at the old and the new name of a file at once, by its name below the directory.
type Copies = BTreeMap<String, BTreeSet<String>>;
/// Directories whose move was cut off.
type HalfDone = BTreeMap<(String, String), Copies>;

#[derive(Debug, Default)]
pub(super) struct Oracle {
    /// Contents that were ever at a path.
    history: BTreeMap<String, BTreeSet<String>>,
    /// Directories that were ever there.
    directories: BTreeSet<String>,
    /// Permission bits that any of them ever had.
    modes: BTreeSet<String>,
    half_done: HalfDone,
    /// Files that a rename which failed has copied, and what: their old name may go late.
    half_renamed: BTreeSet<(String, String, String)>,
}

impl Oracle {
    pub(super) fn remember(&mut self, now: &Snapshot) {
        self.directories.extend(now.directories());
        self.modes
            .extend(now.markers.values().map(|marker| marker.mode.clone()));
        for ((from, to), copied) in &mut self.half_done {
            note_copies(now, (from.as_str(), to.as_str()), copied);
        }
        for (path, file) in &now.files {
            self.history
                .entry(path.clone())
                .or_default()
                .insert(file.content.clone());
        }
    }

    /// Nothing that happened explains this: why, for people.
    pub(super) fn explain(
        &mut self,
        before: &Snapshot,
        done: &[Done],
        after: &Snapshot,
        on_their_way: bool,
    ) -> Result<(), String> {
        let moves = |d: &&Done| self.moves_directory(before, d);
        let result = if done.iter().any(|d| moves(&d)) {
            self.nothing_lost(before, done, after)
        } else {
            let mut order: Vec<usize> = (0..done.len()).collect();
            let any = permutations(&mut order, 0, &mut |order| {
                self.follows(before.clone(), done, order, before, after, on_their_way)
            });
            match any {
                true => Ok(()),
                // A directory's move is many requests: what is done beside it may be done to either name.
                false if done.len() > 1 && done.iter().any(|d| moved_directory(before, d)) => {
                    self.nothing_lost(before, done, after)
                }
                false => Err("no order of the operations gives it".to_owned()),
            }
        };
        for d in done {
            self.note_half_done(before, d, after);
            self.note_half_renamed(d, done, before, after);
            self.note_directories(&d.step);
        }
        result
    }

    /// Directories may come, move and go between two looks at the container; and where one was that only its
    /// mount still knows, that mount knows it under its new name.
    fn note_directories(&mut self, step: &Step) {
        match step {
            Step::Mkdir { path } => {
                self.directories.insert(path.clone());
            }
            Step::Rename { from, to, .. } => {
                let moved: Vec<String> = self
                    .directories
                    .iter()
                    .filter_map(|path| path.strip_prefix(from.as_str()))
                    .filter(|rest| rest.is_empty() || rest.starts_with('/'))
                    .map(|rest| format!("{to}{rest}"))
                    .collect();
                self.directories.extend(moved);
            }
            _ => {}
        }
    }

    /// A directory's move that failed, or goes on from one that did: what is where is not decided by one
    /// step.
    fn moves_directory(&self, before: &Snapshot, done: &Done) -> bool {
        let Step::Rename { from, to, .. } = &done.step else {
            return false;
        };
        if from == to || is_below(to, from) || !before.is_dir(from) {
            return false;
        }
        match done.shown {
            Ok(_) => self.goes_on(before, from, to),
            Err(error) => !OUTDATED.contains(&error) || done.doubtful || self.goes_on(before, from, to),
        }
    }

    fn goes_on(&self, before: &Snapshot, from: &str, to: &str) -> bool {
        before.markers.get(to).is_some_and(|m| m.half_done)
            || self.half_done.contains_key(&(from.to_owned(), to.to_owned()))
    }

    fn note_half_done(&mut self, before: &Snapshot, done: &Done, after: &Snapshot) {
        let Step::Rename { from, to, .. } = &done.step else {
            return;
        };
        if from == to || !before.is_dir(from) {
            return;
        }
        let key = (from.clone(), to.clone());
        if done.shown.is_ok() {
            self.half_done.remove(&key);
            return;
        }
        let copied = self.half_done.entry(key).or_default();
        note_copies(after, (from.as_str(), to.as_str()), copied);
    }

    /// A file's rename that failed, and left it under both names: its old name goes when the deletion comes,
    /// whatever has become of the new one by then.
    fn note_half_renamed(&mut self, this: &Done, done: &[Done], before: &Snapshot, after: &Snapshot) {
        let Step::Rename { from, to, .. } = &this.step else {
            return;
        };
        if !this.doubtful || this.shown.is_ok() || from == to || before.is_dir(from) {
            return;
        }
        let Some(old) = after.files.get(from) else { return };
        let copy = after.files.get(to).is_some_and(|new| new.content == old.content);
        let changed = |d: &Done| !std::ptr::eq(d, this) && takes(before, &d.step, to);
        if copy || done.iter().any(changed) {
            let renamed = (from.clone(), to.clone(), old.content.clone());
            self.half_renamed.insert(renamed);
        }
    }

    /// The old name of a file that was copied goes late.
    fn gone_late(&self, mut now: Snapshot, step: &Step) -> Option<Snapshot> {
        let Step::Rename { from, to, .. } = step else {
            return None;
        };
        let file = now.files.remove(from)?;
        let renamed = (from.clone(), to.clone(), file.content);
        self.half_renamed.contains(&renamed).then_some(now)
    }

    /// What the move of a directory that only its mount knows makes of its names: a marker where it goes,
    /// with what the mount knows of its permission bits; one where it was, or both, when it was `cut_off`.
    fn believed(&self, now: &Snapshot, step: &Step, cut_off: bool) -> Vec<Snapshot> {
        let Step::Rename { from, to, .. } = step else {
            return Vec::new();
        };
        if !self.directories.contains(from) || now.is_dir(from) {
            return Vec::new();
        }
        let mut found = Vec::new();
        for mode in self.modes.iter().map(String::as_str).chain([""]) {
            for names in [&[to][..], &[from], &[from, to]] {
                if (cut_off || names == [to]) && names.iter().all(|name| !now.files.contains_key(*name)) {
                    let mut marked = now.clone();
                    names.iter().for_each(|name| marked.mark_with(name, mode));
                    found.push(marked);
                }
            }
        }
        found
    }

    /// Directories' moves that were cut off, and that the same rename would go on with.
    pub(super) fn to_be_finished(&self, now: &Snapshot) -> Vec<(String, String)> {
        let moves = self.half_done.keys();
        let noted = |to: &String| now.markers.get(to).is_some_and(|marker| marker.half_done);
        moves
            .filter(|(from, to)| noted(to) && now.is_dir(from))
            .cloned()
            .collect()
    }

    /// The move of a directory put this content there, and may put a later one in its place.
    fn is_copy(&self, path: &str, content: &str) -> bool {
        self.half_done.iter().any(|((_, to), copied)| {
            let rest = path.strip_prefix(to.as_str()).filter(|_| is_below(path, to));
            rest.and_then(|rest| copied.get(rest))
                .is_some_and(|of| of.contains(content))
        })
    }

    /// Every content that was there is there, but what somebody replaced or took away.
    fn nothing_lost(&self, before: &Snapshot, done: &[Done], after: &Snapshot) -> Result<(), String> {
        let there: BTreeSet<&str> = after.files.values().map(|f| f.content.as_str()).collect();
        let mut excused = BTreeSet::new();
        for Done { step, .. } in done {
            match step {
                Step::Write { path, .. }
                | Step::Append { path, .. }
                | Step::Cut { path, .. }
                | Step::Unlink { path }
                | Step::Store { path, .. }
                | Step::ForeignPut { path, .. }
                | Step::ForeignDelete { path } => {
                    excused.insert(path.as_str());
                }
                Step::Rename { from, to, .. } if !before.is_dir(from) => {
                    excused.insert(to.as_str());
                }
                _ => {}
            }
        }
        // What was renamed and then changed is not there under either name.
        for (n, Done { step, .. }) in done.iter().enumerate() {
            let mut others = done.iter().enumerate().filter(|(m, _)| *m != n);
            if let Step::Rename { from, to, .. } = step
                && !before.is_dir(from)
                && others.any(|(_, other)| takes(before, &other.step, to))
            {
                excused.insert(from.as_str());
            }
        }
        for (path, file) in &before.files {
            let content = file.content.as_str();
            if !there.contains(content) && !excused.contains(path.as_str()) && !self.is_copy(path, content) {
                return Err(format!("{content:?} of {path} is lost"));
            }
        }
        for (n, d) in done.iter().enumerate() {
            let elsewhere = |path: &str| {
                let others = done.iter().enumerate().filter(|(m, _)| *m != n);
                others
                    .into_iter()
                    .any(|(_, other)| takes(before, &other.step, path))
            };
            match (&d.step, &d.shown) {
                (Step::Write { path, content, .. }, Ok(_))
                    if !there.contains(content.as_str()) && !elsewhere(path) =>
                {
                    return Err(format!("{content:?}, just written to {path}, is lost"));
                }
                (Step::Rename { from, to, .. }, Ok(_))
                    if from != to
                        && before.markers.contains_key(from)
                        && !after.is_dir(to)
                        && !elsewhere(to) =>
                {
                    return Err(format!("{to} is not there, and {from} was renamed to it"));
                }
                _ => {}
            }
        }
        let written = done.iter().filter_map(|d| match &d.step {
            Step::Write { content, .. } | Step::ForeignPut { content, .. } => Some(content.as_str()),
            _ => None,
        });
        let mut known: BTreeSet<&str> = before.files.values().map(|f| f.content.as_str()).collect();
        known.extend(written.chain([""]));
        let changed = done.iter().any(|d| changes(&d.step));
        for (path, file) in &after.files {
            let new = !known.contains(file.content.as_str());
            if new && !changed && !self.history.values().any(|h| h.contains(&file.content)) {
                return Err(format!("{:?} of {path} comes from nowhere", file.content));
            }
        }
        Ok(())
    }

    fn follows(
        &self,
        now: Snapshot,
        done: &[Done],
        order: &[usize],
        before: &Snapshot,
        after: &Snapshot,
        on_their_way: bool,
    ) -> bool {
        let Some((first, rest)) = order.split_first() else {
            return self.matches(after, &now, before, on_their_way);
        };
        let Some(this) = done.get(*first) else {
            return false;
        };
        let go_on = |now: Snapshot| self.follows(now, done, rest, before, after, on_their_way);
        let beside = done.len() > 1;
        let after = on_their_way.then_some(after);
        if self.explains(now.clone(), this, beside, before, after, &go_on) {
            return true;
        }
        // A request that makes a file where there is none may come late, and once more: this one found it.
        on_their_way
            && self
                .came_late(&now, &this.step, done)
                .into_iter()
                .any(|now| self.explains(now, this, beside, before, after, &go_on))
    }

    /// What is there when something comes that an earlier operation made, or one beside this that was told
    /// nothing of it, and makes it once more.
    fn came_late(&self, now: &Snapshot, step: &Step, done: &[Done]) -> Vec<Snapshot> {
        let mut found = Vec::new();
        // A directory takes along what comes below it.
        let renamed = match step {
            Step::Rename { from, to, .. } => vec![from, to],
            _ => Vec::new(),
        };
        let moved = |path: &&String| renamed.iter().any(|directory| is_below(path, directory));
        let below = self.history.keys().filter(moved).map(String::as_str);
        for path in step.paths().into_iter().chain(below) {
            if now.files.contains_key(path) || now.is_dir(path) {
                continue;
            }
            let beside = done.iter().filter(|d| d.doubtful).filter_map(|d| match &d.step {
                Step::Write {
                    path: of, content, ..
                } if of == path => Some(content),
                _ => None,
            });
            for content in self.history.get(path).into_iter().flatten().chain(beside) {
                let mut with = now.clone();
                with.files.insert(path.to_owned(), FileIs::new(content));
                found.push(with);
            }
            if self.directories.contains(path) {
                let mut with = now.clone();
                with.mark(path);
                found.push(with);
            }
        }
        found
    }

    /// One operation explains what it showed, and what it leaves is gone on with. `beside`: others were at
    /// work; `late`: what is there at the end, when requests may come late.
    fn explains(
        &self,
        now: Snapshot,
        this: &Done,
        beside: bool,
        before: &Snapshot,
        late: Option<&Snapshot>,
        go_on: &dyn Fn(Snapshot) -> bool,
    ) -> bool {
        let strict = this.strict && !self.lingers(&now, &this.step);
        let mut applied = now.clone();
        let wanted = applied.apply(&this.step);
        // The kernel itself answers these, by the names it knows.
        if let Step::Rename { from, to, .. } = &this.step
            && ((from == to && this.shown.is_ok()) || (is_below(to, from) && this.shown == Err(libc::EINVAL)))
        {
            return go_on(now);
        }
        match (&this.shown, wanted) {
            (Ok(shown), Ok(wanted)) => {
                let listing = matches!(this.step, Step::List { .. });
                // A listing beside changes shows some of them; one from memory is as old as the mount allows.
                let any = listing && (!strict || beside);
                // A mode that is believed to be there is not written.
                if matches!(this.step, Step::Chmod { .. }) && !strict && go_on(now.clone()) {
                    return true;
                }
                if (any || *shown == wanted) && go_on(if this.step.looks() { now.clone() } else { applied }) {
                    return true;
                }
                // Somebody wrote under the old name meanwhile: that stays, and the name's former content has
                // moved.
                beside && copied(now, &this.step).is_some_and(go_on)
            }
            (Ok(_), Err(_)) if matches!(this.step, Step::List { .. }) && !strict => go_on(now),
            // A directory is what is below it: who believes in one that is gone elsewhere makes it again.
            (Ok(_), Err(libc::ENOENT | libc::ENOTDIR)) if !strict || beside => {
                if now.anyway(&this.step, before).into_iter().any(go_on) {
                    return true;
                }
                // Somebody who believed the file to be a directory put something below it meanwhile.
                if now.clone().alone(&this.step).is_some_and(go_on) {
                    return true;
                }
                // It was gone already.
                let lingers =
                    matches!(&this.step, Step::Rename { from, .. } if self.directories.contains(from));
                // What only its mount knows takes the place of an empty directory that is there.
                if let Step::Rename { to, .. } = &this.step
                    && lingers
                    && now.is_dir(to)
                    && now.children(to).is_empty()
                    && self.believed(&now, &this.step, false).into_iter().any(go_on)
                {
                    return true;
                }
                let nothing = lingers || matches!(this.step, Step::Rmdir { .. } | Step::Chmod { .. });
                (nothing && go_on(now.clone())) || (beside && copied(now, &this.step).is_some_and(go_on))
            }
            (Ok(_), Err(_)) => (!strict || beside) && now.unseen(&this.step).is_some_and(go_on),
            (Err(error), wanted) => {
                // An open file has the version it was opened on, whatever its mount asks for; but what it is
                // stored on is that version as long as its content is there.
                let stored = matches!(this.step, Step::Store { .. });
                let open = matches!(this.step, Step::Scribble { .. }) || (stored && wanted.is_err());
                let elsewhere = !strict && !stored;
                // A directory to its mount, and a file has its name: there is no place for attributes.
                let taken = matches!(this.step, Step::Chmod { .. }) && *error == libc::EPERM;
                // What came late came in the midst of it.
                let amid = |after: &Snapshot| {
                    let mut paths = this.step.paths().into_iter();
                    paths.any(|path| after.files.contains_key(path) && !now.files.contains_key(path))
                };
                let amid = late.is_some_and(amid);
                let outdated = (OUTDATED.contains(error) || taken) && (elsewhere || beside || open || amid);
                // What came late may have come before this.
                let by_then = || late.is_some_and(|after| after.clone().apply(&this.step) == Err(*error));
                let explained = outdated || this.doubtful || wanted == Err(*error) || by_then();
                if explained && go_on(now.clone()) {
                    return true;
                }
                if !this.doubtful && !beside {
                    return false;
                }
                if this.doubtful && wanted.is_ok() && go_on(applied) {
                    return true;
                }
                if this.doubtful && now.anyway(&this.step, before).into_iter().any(go_on) {
                    return true;
                }
                match &this.step {
                    // Copied, and not deleted; or deleted later.
                    step @ Step::Rename { .. } if this.doubtful => {
                        copied(now.clone(), step).is_some_and(go_on)
                            || finished(now.clone(), step).is_some_and(go_on)
                            || self.gone_late(now.clone(), step).is_some_and(go_on)
                            || self.believed(&now, step, true).into_iter().any(go_on)
                    }
                    // Made or cut, and not written.
                    Step::Write { path, .. } => {
                        let mut partly = now;
                        let empty = Step::Write {
                            path: path.clone(),
                            content: String::new(),
                            new: false,
                        };
                        partly.apply(&empty).is_ok() && go_on(partly)
                    }
                    _ => false,
                }
            }
        }
    }

    /// A directory that has no marker and nothing below it any more stays on a mount that knows it, until it
    /// is left.
    fn lingers(&self, now: &Snapshot, step: &Step) -> bool {
        let gone = |path: &str| self.directories.contains(path) && !now.is_dir(path);
        let on_the_way = |path: &str| {
            gone(path)
                || path
                    .match_indices('/')
                    .any(|(at, _)| path.get(..at).is_some_and(gone))
        };
        let listed = |path: &str| match step {
            Step::List { path: of } => parent(path) == of && gone(path),
            _ => false,
        };
        step.paths().into_iter().any(on_the_way) || self.directories.iter().any(|path| listed(path))
    }

    fn matches(&self, after: &Snapshot, expected: &Snapshot, before: &Snapshot, on_their_way: bool) -> bool {
        if after.is_as(expected, before) {
            return true;
        }
        if !on_their_way {
            return false;
        }
        // What makes a file where there is none may come late: then it makes it once more. No condition of
        // the service can tell; what is there by then is never replaced.
        let mut without = after.clone();
        without.files.retain(|path, file| {
            expected.files.contains_key(path)
                || !self.history.get(path).is_some_and(|h| h.contains(&file.content))
        });
        let directories = &self.directories;
        without
            .markers
            .retain(|path, _| expected.markers.contains_key(path) || !directories.contains(path));
        without.is_as(expected, before)
    }
}

fn note_copies(now: &Snapshot, (from, to): (&str, &str), copied: &mut Copies) {
    for (path, file) in &now.files {
        if let Some(rest) = path.strip_prefix(from).filter(|_| is_below(path, from))
            && let Some(copy) = now.files.get(&format!("{to}{rest}"))
            && copy.content == file.content
        {
            copied
                .entry(rest.to_owned())
                .or_default()
                .insert(file.content.clone());
        }
    }
}

fn moved_directory(before: &Snapshot, done: &Done) -> bool {
    matches!(&done.step, Step::Rename { from, to, .. } if from != to && before.is_dir(from))
}

/// What it does may take away what is at the path, or what is above it.
fn takes(before: &Snapshot, step: &Step, path: &str) -> bool {
    let at = |other: &str| other == path || is_below(path, other);
    match step {
        Step::Write { path, .. }
        | Step::Append { path, .. }
        | Step::Cut { path, .. }
        | Step::Unlink { path }
        | Step::Rmdir { path }
        | Step::ForeignPut { path, .. }
        | Step::ForeignDelete { path } => at(path),
        // A file takes the place of another one; a directory does not.
        Step::Rename { from, to, .. } => at(from) || to == path && !before.is_dir(from),
        _ => false,
    }
}

/// It may have made a content of its own, wherever that is by now.
fn changes(step: &Step) -> bool {
    matches!(step, Step::Append { .. } | Step::Cut { .. } | Step::Store { .. })
}

/// A file that was renamed and is under its old name, too.
fn copied(mut now: Snapshot, step: &Step) -> Option<Snapshot> {
    let Step::Rename { from, to, .. } = step else {
        return None;
    };
    let file = now.files.get(from).filter(|_| !now.is_dir(to))?.clone();
    now.files.insert(to.clone(), file);
    Some(now)
}

/// A file that was renamed and was under both names is under the new one only.
fn finished(mut now: Snapshot, step: &Step) -> Option<Snapshot> {
    let Step::Rename { from, to, .. } = step else {
        return None;
    };
    (now.files.get(from)?.content == now.files.get(to)?.content).then_some(())?;
    now.files.remove(from);
    Some(now)
}

fn permutations(order: &mut Vec<usize>, at: usize, found: &mut impl FnMut(&[usize]) -> bool) -> bool {
    if at == order.len() {
        return found(order);
    }
    for other in at..order.len() {
        order.swap(at, other);
        if permutations(order, at + 1, found) {
            return true;
        }
        order.swap(at, other);
    }
    false
}
