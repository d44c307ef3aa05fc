#include "pool.hpp"

#if !defined(_WIN32)
#include <pthread.h>
#endif

#include <algorithm>
#include <condition_variable>
#include <deque>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace lanes {
namespace {

struct Call {
  const std::function<void()>* body;
  int running = 0;
  std::exception_ptr error;
};

class Pool {
 public:
  void run(int threads, const std::function<void()>& body) {
    Call call{&body, 0, nullptr};
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      try {
        while (static_cast<int>(threads_.size()) < threads - 1) {
          threads_.emplace_back([this] { work(); });
        }
      } catch (const std::system_error&) {
        // No more threads for this process: those that there are do the work.
      }
      waiting_.insert(waiting_.end(), std::min<std::size_t>(threads - 1, threads_.size()), &call);
    }
    work_.notify_all();
    std::exception_ptr error;
    try {
      body();
    } catch (...) {
      error = std::current_exception();
    }
    std::unique_lock<std::mutex> lock(mutex_);
    // There is nothing left to do for those that have not begun.
    for (auto it = waiting_.begin(); it != waiting_.end();) {
      it = *it == &call ? waiting_.erase(it) : it + 1;
    }
    done_.wait(lock, [&] { return call.running == 0; });
    if (!error) error = call.error;
    if (error) std::rethrow_exception(error);
  }

 private:
  void work() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      work_.wait(lock, [this] { return !waiting_.empty(); });
      Call* call = waiting_.front();
      waiting_.pop_front();
      ++call->running;
      lock.unlock();
      std::exception_ptr error;
      try {
        (*call->body)();
      } catch (...) {
        error = std::current_exception();
      }
      lock.lock();
      if (error && !call->error) call->error = error;
      if (--call->running == 0) done_.notify_all();
    }
  }

  std::mutex mutex_;
  std::condition_variable work_, done_;
  std::deque<Call*> waiting_;
  std::vector<std::thread> threads_;
};

// Never destroyed: its threads may outlive what a process takes down at its end, and in a child
// after a fork they do not exist.
Pool* pool = nullptr;
std::mutex* pool_mutex = new std::mutex;

void forget() {
  pool = nullptr;
  pool_mutex = new std::mutex;
}

Pool& current() {
  static const bool registered = [] {
#if !defined(_WIN32)
    pthread_atfork(nullptr, nullptr, forget);
#endif
    return true;
  }();
  (void)registered;
  const std::lock_guard<std::mutex> lock(*pool_mutex);
  if (!pool) pool = new Pool;
  return *pool;
}

}  // namespace

void in_parallel(int threads, const std::function<void()>& body) {
  if (threads <= 1) {
    body();
  } else {
    current().run(threads, body);
  }
}

}  // namespace lanes
