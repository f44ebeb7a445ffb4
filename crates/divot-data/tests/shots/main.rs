//! Shot boundaries beside PySceneDetect's, which `xtask/peer/shots.py` computed, and the clips that shots become.

mod clips;
mod made;
mod videos;
