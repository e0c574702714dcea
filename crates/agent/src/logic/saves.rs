//! The way of a save: seen, linked, hashed, uploaded, offered, committed. Each station holds one save; a newer one takes the place of an
//! older one that has not begun to upload.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use tradewind_protocol::manifest::slot_key;
use tradewind_protocol::report::{SaveTook, Uploading};
use tradewind_protocol::{CheckpointOffer, Chunk, Manifest, ManifestFile, Report, Ticket, VERSION};

use super::Action;
use super::action::Piece;
use super::input::{ChunkOutcome, Now, SaveId, SeenSave, StagedFile};
use super::settings::{Settings, backoff};
use super::slots::Slots;

/// Offers whose manifests are remembered, to become the parent once they are committed.
const OFFERS_KEPT: usize = Report::MAX_OFFERS;
/// Failures in a row of one upload after which a newer save that waits takes its place.
const PATIENCE: u32 = 8;
/// Refusals of one ticket after which its slot is given up.
const DENIALS: u32 = 5;
/// An offer that waits longer than this has no operator who looks: the slots that are left must do for the last save as well.
const OPERATOR_AWAY: Duration = Duration::from_mins(1);
/// Room that the manifests of all offers that wait may take in a report, in bytes.
const MOST_MANIFEST_BYTES: usize = 900_000;

/// What every manifest of this machine has in common.
#[derive(Debug, Clone)]
pub(super) struct Origin {
    pub run_id: String,
    pub attempt: u32,
    pub machine: String,
    pub data_prefix: String,
    /// Others save parts of the same checkpoints.
    pub together: bool,
}

#[derive(Debug)]
struct Save {
    id: SaveId,
    seen: SeenSave,
    /// When it was seen to be complete, on the monotonic clock.
    since: Duration,
}

/// A committed checkpoint whose chunks may be named again.
#[derive(Debug)]
struct Parent {
    seq: u64,
    chunks: BTreeMap<String, Chunk>,
}

#[derive(Debug)]
struct Sending {
    piece: Piece,
    slot: u64,
    ticket: Ticket,
    failures: u32,
    /// `None` while it is on its way.
    retry_at: Option<Duration>,
}

#[derive(Debug)]
struct Upload {
    save: Save,
    files: Vec<StagedFile>,
    parent: Option<u64>,
    /// Where each piece is, by its hash.
    placed: BTreeMap<String, Chunk>,
    waiting: VecDeque<Piece>,
    sending: Vec<Sending>,
    total_bytes: u64,
    sent_bytes: u64,
    failures: u32,
}

/// An offer that waits for the operator.
#[derive(Debug)]
struct Waiting {
    offer: CheckpointOffer,
    /// Size of its manifest as JSON.
    bytes: usize,
    since: Duration,
}

#[derive(Debug, Default)]
pub(super) struct Saves {
    last_id: SaveId,
    linking: Vec<Save>,
    linked: Option<Save>,
    hashing: Option<Save>,
    hashed: Option<(Save, Vec<StagedFile>)>,
    upload: Option<Upload>,
    offers: u64,
    offered: BTreeMap<u64, Manifest>,
    parent: Option<Parent>,
    /// Most slots that a save has needed.
    most_slots: u64,
    /// Offers that wait for their commit, by their numbers: the newest alone, or where others save parts of the same checkpoints the newest
    /// few, since a checkpoint counts at a step that all have.
    waiting: VecDeque<Waiting>,
    /// How long the save of the newest offer took.
    took: Option<SaveTook>,
    /// Rises with everything that gets a save further; the end waits as long as it does.
    headway: u64,
}

impl Saves {
    /// The offers that wait for the operator: the newest, and older ones.
    pub fn offers(&self) -> (Option<CheckpointOffer>, Vec<CheckpointOffer>) {
        let mut all: Vec<CheckpointOffer> = self.waiting.iter().map(|waiting| waiting.offer.clone()).collect();
        (all.pop(), all)
    }

    /// How long the save of the newest offer took.
    pub fn took(&self) -> Option<SaveTook> {
        self.took
    }

    /// Since when the newest offer waits, on the monotonic clock.
    pub fn offered_since(&self) -> Option<Duration> {
        self.waiting.back().map(|waiting| waiting.since)
    }

    /// The upload under way.
    pub fn uploading(&self) -> Option<Uploading> {
        self.upload.as_ref().map(|upload| Uploading {
            step: upload.save.seen.step.unwrap_or_default(),
            sent_bytes: upload.sent_bytes,
            total_bytes: upload.total_bytes,
        })
    }

    /// True if pieces wait for slots that are not there.
    pub fn starved(&self, slots: &Slots) -> bool {
        slots.left() == 0 && self.upload.as_ref().is_some_and(|upload| !upload.waiting.is_empty())
    }

    /// True if no save is on its way and no offer waits.
    pub fn settled(&self) -> bool {
        self.all_offered() && self.waiting.is_empty()
    }

    /// True if no save is on its way.
    pub fn all_offered(&self) -> bool {
        self.under_way().next().is_none()
    }

    /// Forgets the saves of an attempt that is over. The numbers go on, so that a late answer is never taken for another save's.
    pub fn begin_anew(&mut self, actions: &mut Vec<Action>) {
        actions.extend(self.under_way().map(|save| Action::DropStaging { save: save.id }));
        let (last_id, offers, most_slots, headway) = (self.last_id, self.offers, self.most_slots, self.headway);
        *self = Self { last_id, offers, most_slots, headway, ..Self::default() };
    }

    /// Rises with everything that gets a save further.
    pub fn headway(&self) -> u64 {
        self.headway
    }

    /// A checkpoint of the catalogue becomes the one whose chunks may be named again.
    pub fn pin(&mut self, seq: u64, manifest: &Manifest) {
        let chunks = manifest.files.iter().flat_map(|file| &file.chunks);
        self.parent = Some(Parent { seq, chunks: chunks.map(|chunk| (chunk.sha256.clone(), chunk.clone())).collect() });
    }

    /// The program saved.
    pub fn seen(&mut self, now: Now, seen: SeenSave, actions: &mut Vec<Action>) {
        while let Some(id) = self.under_way_as(&seen.name).filter(|_| seen.continues) {
            self.lost(id, actions);
        }
        self.last_id += 1;
        self.headway += 1;
        actions.push(Action::Link { save: self.last_id, name: seen.name.clone() });
        self.linking.push(Save { id: self.last_id, seen, since: now.monotonic });
    }

    /// Saves that are not offered yet.
    fn under_way(&self) -> impl Iterator<Item = &Save> {
        let stations = [
            self.linked.as_ref(),
            self.hashing.as_ref(),
            self.hashed.as_ref().map(|(save, _)| save),
            self.upload.as_ref().map(|upload| &upload.save),
        ];
        self.linking.iter().chain(stations.into_iter().flatten())
    }

    fn under_way_as(&self, name: &str) -> Option<SaveId> {
        self.under_way().find(|save| save.seen.name == name).map(|save| save.id)
    }

    /// The links of a save are there: from now on the program may prune it.
    pub fn linked(&mut self, id: SaveId, actions: &mut Vec<Action>) {
        let Some(at) = self.linking.iter().position(|save| save.id == id) else {
            actions.push(Action::DropStaging { save: id });
            return;
        };
        self.headway += 1;
        if let Some(older) = self.linked.replace(self.linking.remove(at)) {
            actions.push(Action::DropStaging { save: older.id });
        }
    }

    /// The hashes of a save are there. A sentence if the save cannot be offered.
    pub fn hashed(
        &mut self,
        id: SaveId,
        files: Vec<StagedFile>,
        settings: &Settings,
        actions: &mut Vec<Action>,
    ) -> Option<String> {
        let save = self.hashing.take_if(|save| save.id == id)?;
        self.headway += 1;
        let pieces: usize = files.iter().map(|file| file.pieces.len() + 1).sum();
        if pieces > settings.most_pieces {
            actions.push(Action::DropStaging { save: id });
            return Some(format!(
                "Checkpoint {} has {pieces} files and pieces, more than {} are not supported: it is not uploaded",
                save.seen.name, settings.most_pieces
            ));
        }
        if let Some((older, _)) = self.hashed.replace((save, files)) {
            actions.push(Action::DropStaging { save: older.id });
        }
        None
    }

    /// A save is gone before it could be uploaded whole. Returns its name.
    pub fn lost(&mut self, id: SaveId, actions: &mut Vec<Action>) -> Option<String> {
        actions.push(Action::DropStaging { save: id });
        let linking = self.linking.iter().position(|save| save.id == id).map(|at| self.linking.remove(at));
        let save = linking
            .or_else(|| self.linked.take_if(|save| save.id == id))
            .or_else(|| self.hashing.take_if(|save| save.id == id))
            .or_else(|| self.hashed.take_if(|(save, _)| save.id == id).map(|(save, _)| save))
            .or_else(|| self.upload.take_if(|upload| upload.save.id == id).map(|upload| upload.save))?;
        self.headway += 1;
        Some(save.seen.name)
    }

    /// The operator committed an offer.
    pub fn committed(&mut self, offer: u64, seq: u64) {
        // A second save of a step counts as the checkpoint that is there; the answer is one all the same.
        let manifest = self.offered.remove(&offer);
        if self.parent.as_ref().is_none_or(|parent| parent.seq < seq)
            && let Some(manifest) = manifest
        {
            self.pin(seq, &manifest);
        }
        self.answered(offer);
    }

    /// The operator refused an offer. True if it waited.
    pub fn refused(&mut self, offer: u64) -> bool {
        if self.offered.remove(&offer).is_some_and(|manifest| manifest.parent.is_some()) {
            // What it was built on may be gone: the next one stands on its own.
            self.parent = None;
        }
        self.answered(offer)
    }

    /// Offers are decided in order: what is older than one that is decided never counts.
    fn answered(&mut self, offer: u64) -> bool {
        let before = self.waiting.len();
        self.waiting.retain(|waiting| waiting.offer.number > offer);
        let answered = self.waiting.len() < before;
        self.headway += u64::from(answered);
        answered
    }

    /// Begins with the save that waits. While the operator is away a save is held back that would leave too few slots for the `last` one.
    fn begin_upload(&mut self, now: Now, slots: &Slots, last: bool) {
        let Some((save, files)) = self.hashed.take() else { return };
        let upload = Upload::new(save, files, self.parent.as_ref());
        let need = upload.waiting.len() as u64;
        self.most_slots = self.most_slots.max(need);
        let last = last && self.linking.is_empty() && self.linked.is_none() && self.hashing.is_none();
        let away = self.offered_since().is_some_and(|since| now.monotonic.saturating_sub(since) > OPERATOR_AWAY);
        if away && !last && slots.left() < need + self.most_slots {
            self.hashed = Some((upload.save, upload.files));
        } else {
            self.upload = Some(upload);
        }
    }

    /// Moves saves on: to the hashing, to the upload, to the offer. `last`: the program saves no more after those that are here or on
    /// their way. Sentences about those that cannot be offered.
    pub fn advance(
        &mut self,
        now: Now,
        origin: &Origin,
        (slots, last): (&mut Slots, bool),
        settings: &Settings,
        actions: &mut Vec<Action>,
    ) -> Vec<String> {
        let mut warnings = Vec::new();
        if self.hashing.is_none()
            && let Some(save) = self.linked.take()
        {
            actions.push(Action::Hash { save: save.id });
            self.hashing = Some(save);
        }
        if self.hashed.is_some()
            && let Some(hopeless) = self.upload.take_if(|upload| upload.failures >= PATIENCE)
        {
            actions.push(Action::DropStaging { save: hopeless.save.id });
        }
        loop {
            if self.upload.is_none() {
                self.begin_upload(now, slots, last);
            }
            let Some(upload) = &mut self.upload else { return warnings };
            upload.advance(now, slots, settings, actions);
            let Some(upload) = self.upload.take_if(|upload| upload.waiting.is_empty() && upload.sending.is_empty())
            else {
                return warnings;
            };
            warnings.extend(self.make_offer(now, upload, origin, actions));
        }
    }

    /// A sentence if it cannot be offered.
    fn make_offer(&mut self, now: Now, upload: Upload, origin: &Origin, actions: &mut Vec<Action>) -> Option<String> {
        actions.push(Action::DropStaging { save: upload.save.id });
        self.headway += 1;
        let manifest = upload.manifest(origin);
        let seen = &upload.save.seen;
        let written = Duration::try_from(seen.complete_at.duration_since(seen.began_at)).unwrap_or_default();
        let took = written + now.monotonic.saturating_sub(upload.save.since);
        // A report that the other side refuses would silence this machine for good.
        let problem = manifest.validate().err().map(|invalid| invalid.to_string());
        let bytes = serde_json::to_vec(&manifest).map_or(usize::MAX, |json| json.len());
        let problem = problem.or_else(|| {
            (bytes > MOST_MANIFEST_BYTES)
                .then(|| format!("its list of files has more than {MOST_MANIFEST_BYTES} bytes"))
        });
        if let Some(problem) = problem {
            return Some(format!("Checkpoint {} is not offered: {problem}", manifest.name));
        }
        self.offers += 1;
        self.took = Some(SaveTook { offer: self.offers, millis: u64::try_from(took.as_millis()).unwrap_or(u64::MAX) });
        self.offered.insert(self.offers, manifest.clone());
        while self.offered.len() > OFFERS_KEPT {
            self.offered.pop_first();
        }
        let offer = CheckpointOffer { number: self.offers, manifest };
        self.waiting.push_back(Waiting { offer, bytes, since: now.monotonic });
        let most = if origin.together { Report::MAX_OFFERS } else { 1 };
        while self.waiting.len() > most || self.waiting.iter().map(|w| w.bytes).sum::<usize>() > MOST_MANIFEST_BYTES {
            self.waiting.pop_front();
        }
        None
    }

    /// A piece was uploaded, or not.
    pub fn chunk_done(
        &mut self,
        now: Now,
        id: SaveId,
        slot: u64,
        outcome: ChunkOutcome,
        origin: &Origin,
        actions: &mut Vec<Action>,
    ) -> Option<String> {
        let upload = self.upload.as_mut().filter(|upload| upload.save.id == id)?;
        if let ChunkOutcome::Unreadable(reason) = outcome {
            let name = upload.save.seen.name.clone();
            self.lost(id, actions);
            return Some(format!("Checkpoint {name} is given up: {reason}"));
        }
        if upload.chunk_done(now, slot, &outcome, origin) {
            self.headway += 1;
        }
        None
    }

    /// When [`Saves::advance`] has something to do by itself.
    pub fn wake(&self) -> Option<Duration> {
        self.upload.as_ref()?.sending.iter().filter_map(|sending| sending.retry_at).min()
    }
}

impl Upload {
    fn new(save: Save, files: Vec<StagedFile>, parent: Option<&Parent>) -> Self {
        let mut upload = Self {
            save,
            files,
            parent: None,
            placed: BTreeMap::new(),
            waiting: VecDeque::new(),
            sending: Vec::new(),
            total_bytes: 0,
            sent_bytes: 0,
            failures: 0,
        };
        let mut queued = BTreeSet::new();
        for file in &upload.files {
            let mut offset = 0;
            for staged in &file.pieces {
                let piece = Piece {
                    path: file.path.clone(),
                    offset,
                    size_bytes: staged.size_bytes,
                    sha256: staged.sha256.clone(),
                    md5: staged.md5.clone(),
                };
                offset += staged.size_bytes;
                if !queued.insert(staged.sha256.clone()) {
                    continue;
                }
                let known = parent.and_then(|parent| Some((parent.seq, parent.chunks.get(&staged.sha256)?)));
                match known {
                    Some((seq, chunk)) if chunk.size_bytes == staged.size_bytes => {
                        upload.parent = Some(seq);
                        upload.placed.insert(staged.sha256.clone(), chunk.clone());
                    }
                    _ => {
                        upload.total_bytes += piece.size_bytes;
                        upload.waiting.push_back(piece);
                    }
                }
            }
        }
        upload
    }

    fn advance(&mut self, now: Now, slots: &mut Slots, settings: &Settings, actions: &mut Vec<Action>) {
        let id = self.save.id;
        for sending in &mut self.sending {
            if sending.retry_at.is_some_and(|at| at <= now.monotonic) {
                sending.retry_at = None;
                actions.push(send(id, &sending.piece, sending.slot, &sending.ticket));
            }
        }
        while self.sending.len() < settings.parallel && !self.waiting.is_empty() {
            let Some((slot, ticket)) = slots.take(now.wall) else { break };
            if let Some(piece) = self.waiting.pop_front() {
                actions.push(send(id, &piece, slot, &ticket));
                self.sending.push(Sending { piece, slot, ticket, failures: 0, retry_at: None });
            }
        }
    }

    /// True if it is a step forward.
    fn chunk_done(&mut self, now: Now, slot: u64, outcome: &ChunkOutcome, origin: &Origin) -> bool {
        let on_its_way = |sending: &Sending| sending.slot == slot && sending.retry_at.is_none();
        let Some(at) = self.sending.iter().position(on_its_way) else { return false };
        if *outcome == ChunkOutcome::Stored {
            let piece = self.sending.remove(at).piece;
            self.failures = 0;
            self.sent_bytes += piece.size_bytes;
            let key = slot_key(&origin.data_prefix, slot);
            let chunk = Chunk { key, size_bytes: piece.size_bytes, sha256: piece.sha256.clone() };
            self.placed.insert(piece.sha256, chunk);
            return true;
        }
        self.failures += 1;
        let sending = &mut self.sending[at];
        sending.failures += 1;
        // A slot that is taken may hold these very bytes after an answer that was lost, but nothing here can tell: a fresh slot.
        let spent = match outcome {
            ChunkOutcome::Taken => true,
            ChunkOutcome::Denied => sending.failures >= DENIALS || sending.ticket.expires <= now.wall,
            _ => false,
        };
        if spent {
            let piece = self.sending.remove(at).piece;
            self.waiting.push_front(piece);
        } else {
            sending.retry_at = Some(now.monotonic + backoff(sending.failures));
        }
        false
    }

    fn manifest(&self, origin: &Origin) -> Manifest {
        let place = |sha256: &String| self.placed.get(sha256).cloned();
        let files = self.files.iter().map(|file| ManifestFile {
            path: file.path.clone(),
            size_bytes: file.size_bytes,
            mode: file.mode,
            chunks: file.pieces.iter().filter_map(|piece| place(&piece.sha256)).collect(),
            rank: None,
        });
        Manifest {
            version: VERSION,
            run_id: origin.run_id.clone(),
            attempt: origin.attempt,
            machine: origin.machine.clone(),
            step: self.save.seen.step.unwrap_or_default(),
            name: self.save.seen.name.clone(),
            kind: self.save.seen.kind,
            files: files.collect(),
            saved_at: self.save.seen.complete_at,
            save_began_at: self.save.seen.began_at,
            parent: self.parent,
            writers: vec![],
        }
    }
}

fn send(save: SaveId, piece: &Piece, slot: u64, ticket: &Ticket) -> Action {
    Action::UploadChunk { save, piece: piece.clone(), slot, ticket: ticket.clone() }
}
