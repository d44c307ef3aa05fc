// Threads that wait for work, as many as were ever asked for. A process that is forked begins without
// any: threads do not survive a fork.
#pragma once

#include <functional>

namespace lanes {

// Call body once in each of `threads` threads, the calling one among them; where the others are busy
// with another call, in fewer. Returns when all that began have ended. The first exception is
// raised again in the calling thread.
void in_parallel(int threads, const std::function<void()>& body);

}  // namespace lanes
