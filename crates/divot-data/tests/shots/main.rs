//! Shot boundaries beside PySceneDetect's, which `xtask/peer/shots.py` computed.

mod clips;
mod made;
mod videos;
